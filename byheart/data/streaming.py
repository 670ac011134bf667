"""Training on data that are too large to hold: so many records at once, in the order in which they arrive.

The records of a source are cut into windows of equal size. A window serves the batches that take its records about
once, then the next one takes its place; after the last record comes the first one again. So a batch is a function of
its number alone, as in any mixture, and a run resumes by reading up to its window: nothing but the number of its step
is kept. A source with no more records than a window is held whole.

It does not know what an episode looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, islice

from byheart.data.mixture import Mixture, Weighted, split_weight
from byheart.data.records import DataSet, Fields, stream_rows
from byheart.errors import require_positive
from byheart.protocol.episode import Batch


class StreamedSource:
    """Records of one source, ``size`` of them at once.

    Args:
        source: ``PATH`` or ``PATH:weight``; a path, or a name of the hub, see ``hub``.

    Raises InputError or UsageError: the first window is read at once.
    """

    def __init__(self, source: str, size: int) -> None:
        require_positive(stream=size)
        (self.source, self.weight), self.size = split_weight(source), size
        first = list(islice(stream_rows(self.source), size + 1))
        self._rows, self._next = self._read_again(), 0
        self._is_whole, self._first = len(first) <= size, DataSet.of(first[:size], source=self.source)

    def window(self, number: int) -> Weighted:
        """The records of a window, the same ones whenever it is asked for. Raises InputError."""
        if number == 0 or self._is_whole:
            return Weighted(self._first, self.weight)
        if number < self._next:
            self._rows, self._next = self._read_again(), 0
        for _ in islice(self._rows, (number - self._next) * self.size):
            pass
        self._next = number + 1
        return Weighted(DataSet.of(list(islice(self._rows, self.size)), source=self.source), self.weight)

    def _read_again(self) -> Iterator[Fields]:
        """The records from the first one on, again and again; nothing is read before it is asked for."""
        return chain.from_iterable(stream_rows(self.source) for _ in count())


class StreamedMixture:
    """Batches of the windows of several sources; call it with a batch's number.

    Args:
        make: makes a mixture of the records that are held.
    """

    def __init__(self, make: Callable[[Sequence[Weighted]], Mixture], sources: Sequence[StreamedSource]) -> None:
        self.make, self.sources, self._window = make, sources, 0
        self._mixture = self._open(0)
        # Whole groups of batches that are dealt together.
        together = self._mixture.batch * self._mixture.packed
        self.batches = -(-max(source.size for source in sources) // together) * self._mixture.packed

    def __call__(self, number: int) -> Batch:
        """Batch ``number``, from 0 on. Raises InputError."""
        window = number // self.batches
        if window != self._window:
            self._mixture, self._window = self._open(window), window
        return self._mixture(number)

    def _open(self, window: int) -> Mixture:
        return self.make([source.window(window) for source in self.sources])
