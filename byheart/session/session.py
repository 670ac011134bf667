"""Text in, text out: a memory over a model, with an encoder and a history of what was written.

A session owns one state. It splits text into what its method takes, and keeps what a reading costs to prepare until the
next write. It does not know which method it has, nor how text becomes tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import Unpack

from byheart.errors import InputError, StateError
from byheart.generation.contrast import require_contrast
from byheart.generation.decoding import Decoding, DecodingOptions, with_options
from byheart.generation.generate import Generation, Request
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.reading import Reading
from byheart.model.slices import Slices, run_through
from byheart.model.stock_attention import without_masks
from byheart.protocol import state_file
from byheart.protocol.fact import Fact
from byheart.protocol.method import Method
from byheart.protocol.state import Header, State, Written, nbytes
from byheart.session.facts import encode_fact
from byheart.session.readable import read_own, require_readable
from byheart.text.detokenize import decode_stream, stop_strings
from byheart.text.encoder import ChatEncoder
from byheart.text.fact_text import FactText
from byheart.text.prompt_format import PromptFormat

Progress = Callable[[int, int], None]
_DEFAULTS = Decoding()


class Session:
    """One memory of one user: write texts, ask about them, save, load, fork, forget.

    Args:
        state: what was kept before; a fresh state without it.
        written: what was written into ``state``.
        learned: the folder that holds the method's learned parts; kept with states so that they can be opened again.
    """

    def __init__(
        self,
        backbone: Backbone,
        encoder: ChatEncoder,
        method: Method,
        *,
        state: State | None = None,
        written: Sequence[Written] = (),
        learned: str = "",
    ) -> None:
        self.backbone = backbone
        self.encoder = encoder.with_format(PromptFormat.of(method.prompt_format))
        self.method = method
        self._state: State = method.init() if state is None else state
        self._is_parked = False
        self.header = Header(
            method=method.name,
            options=method.options(),
            backbone=backbone.fingerprint,
            tokenizer=encoder.fingerprint,
            adapter=method.fingerprint,
            model=backbone.source,
            dtype=str(backbone.dtype).removeprefix("torch."),
            learned=learned,
            capacity=method.capacity,
            text_format=method.text_format,
            written=list(written),
        )
        self.file_hash = ""
        """The hash of the file that this memory was last saved to or loaded from; empty where there is none."""
        self._reading: Reading | None = None
        self._cache: PrefixCache | None = None

    # ---- writing ----

    def write(self, text: str, *, source: str = "text", progress: Progress | None = None) -> Written:
        """Put ``text`` into the memory. Raises InputError; the memory then stays as it was.

        Args:
            text: a ``FactText`` marks in a sentence what it is about and what is to be known of it; methods that edit
                knowledge (rome, memit) use the marks.
            source: where the text came from, for the record.
            progress: called with the tokens done and the tokens in all.
        """
        tokens = self.document(text)
        fact = self.fact(text, tokens) if isinstance(text, FactText) else None
        return self._absorb(tokens, source, len(text), progress, fact)

    def fact(self, text: FactText, tokens: Tensor, *, use_chat_template: bool = True) -> Fact:
        """A marked sentence as a method is given it; ``tokens`` (1, T) are those of ``document``."""
        as_turn = use_chat_template and self.method.text_format == "turn"
        return encode_fact(self.encoder, text, tokens[0], first=not self.header.written, as_turn=as_turn)

    def document(
        self, text: str, *, use_chat_template: bool = True, answer: str | None = None, follows: bool = False
    ) -> Tensor:
        """The tokens (1, T) of a text or a turn as it would be written, or of the bare text. Raises InputError.

        ``follows``: after another text that is about to be written.
        """
        if answer is None and not text.strip():
            raise InputError("There is nothing to write: the text is empty.")
        as_turn = use_chat_template and self.method.text_format == "turn"
        how: dict[str, bool] = {"first": self._is_first and not follows, "as_turn": as_turn}
        tokens = self.encoder.document(text, **how) if answer is None else self.encoder.turn(text, answer, **how)
        return tokens[None].to(self.backbone.device)

    @property
    def _is_first(self) -> bool:
        """Whether what is written next begins as every text does."""
        return not self.header.written and not self.method.own_start

    def require_room(self, tokens: Tensor, *, use_chat_template: bool = True) -> None:
        """Raise InputError where a text (1, T) would leave no position for a question; nothing is computed."""
        continues = self.method.text_format == "turn"
        question = self.encoder.question("?", continues=continues, use_chat_template=use_chat_template)
        after, positions = self.method.slots_after(self.state, tokens), self.backbone.positions
        if after + len(question) + 1 > positions:
            raise InputError(
                f"The text has {tokens.shape[1]:,} tokens, with which the memory would have {after:,} slots, but the "
                f"model reads at most {positions}, {len(question) + 1} of them for a question. Write less of it, or "
                "take a smaller memory, or a method of fixed size (window, latent-pool, compressed-kv)."
            )

    def write_turn(self, question: str, answer: str) -> Written:
        """Put a turn of a conversation into the memory: what was asked and what was answered."""
        return self._absorb(self.document(question, answer=answer), "chat", len(question) + len(answer))

    def acknowledge(self, state: State, entry: Written) -> Written:
        """Take ``state``, into which ``entry`` was written, as what this session keeps."""
        self._hold(state, self.header.with_written(entry))
        return entry

    def _absorb(
        self,
        tokens: Tensor,
        source: str,
        characters: int,
        progress: Progress | None = None,
        fact: Fact | None = None,
    ) -> Written:
        """Write a text (1, T) piece by piece, or the fact that it is at once."""
        progress = progress or (lambda done, total: None)
        self.require_room(tokens)
        entry = Written.now(source, tokens=tokens.shape[1], characters=characters)
        state, done = self.state, 0
        progress(done, tokens.shape[1])
        if fact is not None:
            with torch.no_grad():
                [state] = self.method.write_facts([state], [fact])
            progress(tokens.shape[1], tokens.shape[1])
        for segment in self.method.pieces(tokens) if fact is None else ():
            with torch.no_grad():
                state = self.method.write(state, segment)
            done += segment.shape[1]
            progress(done, tokens.shape[1])
        return self.acknowledge(state, entry)

    def _hold(self, state: State, header: Header) -> None:
        """Keep another state; what was prepared for the one before is dropped."""
        self._state, self._is_parked, self.header, self._reading, self._cache = state, False, header, None, None

    @property
    def state(self) -> State:
        """The memory as tensors on the model's device, to which it comes back where it was parked."""
        if self._is_parked:
            self._state = {name: tensor.to(self.backbone.device) for name, tensor in self._state.items()}
            self._is_parked = False
        return self._state

    def park(self) -> None:
        """Let the memory wait in the machine's own memory until it is next used, so that a GPU serves many of them."""
        self._hold({name: tensor.cpu() for name, tensor in self._state.items()}, self.header)
        self._is_parked = True

    # ---- asking ----

    def ask(
        self,
        question: str,
        decoding: Decoding = _DEFAULTS,
        *,
        stop: str | Sequence[str] = (),
        **options: Unpack[DecodingOptions],
    ) -> str:
        """The answer to ``question``. Raises InputError and UsageError.

        Args:
            stop: strings that end the answer.
            options: fields of ``decoding`` to change, such as ``max_tokens``.
        """
        return "".join(self.stream(question, decoding, stop=stop, **options)).strip()

    def stream(
        self,
        question: str,
        decoding: Decoding = _DEFAULTS,
        *,
        stop: str | Sequence[str] = (),
        **options: Unpack[DecodingOptions],
    ) -> Iterator[str]:
        """The answer piece by piece, as it is made; arguments as for ``ask``, errors before the first piece."""
        self.require_written()
        return self.reply(question, decoding, stop=stop, **options)

    def reply(
        self,
        question: str,
        decoding: Decoding = _DEFAULTS,
        *,
        stop: str | Sequence[str] = (),
        **options: Unpack[DecodingOptions],
    ) -> Iterator[str]:
        """As ``stream``, for a turn of a conversation, which may be its first: the memory may be empty."""
        request, stops = self.request(question, with_options(decoding, options)), stop_strings(stop)
        require_contrast(request.decoding, [request.reading])
        return decode_stream(self._answer(request), self.encoder, stops)

    def request(
        self,
        question: str,
        decoding: Decoding,
        *,
        use_chat_template: bool = True,
        answer_prefix: str = "",
        unconditional: str = "",
        search: str = "",
        tokens: Sequence[int] = (),
    ) -> Request:
        """What a generation needs to answer ``question``. Raises InputError.

        Args:
            use_chat_template, answer_prefix, tokens: as for ``prompt``.
            unconditional: what context-aware decoding asks the model without the memory; the question without it.
            search: by what a method selects what it reads; the question without it.
        """
        prompt, without = (
            self.prompt(
                text, use_chat_template=use_chat_template, answer_prefix=answer_prefix, alone=alone, tokens=tokens
            )
            for text, alone in ((question, False), (unconditional or question, True))
        )
        return Request(prompt, self.reading_for(search or question), decoding, without, self.encoder.stop_tokens)

    def _answer(self, request: Request) -> Iterator[int | None]:
        """The answer's tokens. While they are made, nobody else has the cache; afterwards the session keeps it."""
        cache = self._cache if self._reading is request.reading else None
        if cache is not None:
            self._cache = None
        elif request.decoding.context_aware is None:
            with torch.no_grad(), self.backbone.reading([replace(request.reading, deltas={})]) as cache:
                pass
        generation = Generation(self.backbone, cache=cache)
        try:
            generation.add([request])
            while generation.running:
                yield generation.step()[0].last
        finally:
            generation.close()
            if self._reading is request.reading and cache is not None:
                self._cache = cache

    def prompt(
        self,
        question: str,
        *,
        use_chat_template: bool = True,
        answer_prefix: str = "",
        alone: bool = False,
        tokens: Sequence[int] = (),
    ) -> Tensor:
        """The tokens (T,) that ask ``question``, or the bare text for the model to continue. Raises InputError.

        ``answer_prefix``: what the answer is made to begin with. ``alone``: as where nothing was written. ``tokens``:
        what is asked as it is, in place of the question.
        """
        has_turns = self.method.text_format == "turn" or self.encoder.prompt_format is not None
        continues = has_turns and bool(self.header.written) and not alone
        if tokens:
            prompt = torch.tensor(tokens)
        else:
            first = alone or not self.method.own_start
            prompt = self.encoder.question(
                question, continues=continues, use_chat_template=use_chat_template, first=first
            )
        if answer_prefix:
            begun = self.encoder.continuation(answer_prefix, use_chat_template=use_chat_template)
            prompt = torch.cat([prompt, begun])
        return prompt.to(self.backbone.device)

    def require_written(self) -> None:
        """Raise InputError where nothing has been written."""
        if not self.header.written:
            raise InputError("Nothing has been written into this memory; write a text first.")

    @property
    def reading(self) -> Reading:
        """What the model sees of the memory; made once after each write."""
        if self._reading is None:
            with torch.no_grad():
                self._reading = self.method.read(self.state)
        return self._reading

    def reading_for(self, question: str) -> Reading:
        """What the model sees of the memory when it is asked ``question``: ``reading``, unless the method selects."""
        part = self.method.select(self.state, self.encoder.continuation(question))
        if part is self.state:
            return self.reading
        with torch.no_grad():
            return self.method.read(part)

    def stock_reading(self, question: str = "What is this about?") -> Reading:
        """``reading_for`` without masks of single heads, for engines with stock attention; other questions fit it too.

        Raises UnsupportedModelError where the model's heads need them.
        """
        return without_masks(self.backbone, self.reading_for(question), self.prompt(question)[None])

    def reread_tokens(self, question: str) -> float:
        """How many tokens of the text the model runs again to be asked ``question``, as whole passes of one token."""
        return self.method.reread_tokens(self.method.select(self.state, self.encoder.continuation(question)))

    # ---- keeping ----

    def save(self, path: str | Path) -> int:
        """Write the memory to a file, atomically; gives its bytes. Raises StateError, the earlier file intact."""
        header = self.header_for(path)
        size, self.file_hash = state_file.save(Path(path), self.state, header)
        self.header = header
        return size

    def header_for(self, path: str | Path) -> Header:
        """The header with which the memory is saved to a file. Raises StateError where it could not be opened again."""
        # What is not opened again must not take the place of what is.
        try:
            self.method.require_own(self.state, written=bool(self.header.written))
        except ValueError as error:
            raise StateError(
                f"'{path}' was not written, because it could not be opened again: {error}. The write diverged; write "
                "with a lower learning_rate. The earlier memory is as it was."
            ) from error
        return replace(self.header, slots=self.method.prefix_slots(self.state))

    def load(self, path: str | Path) -> None:
        """Continue from a saved memory. Raises StateError; the present memory then stays."""
        run_through(self.load_in_slices(path, longest=self.backbone.positions))

    def load_in_slices(self, path: str | Path, *, longest: int, reading: Reading | None = None) -> Slices[None]:
        """The same with pauses, after ``longest`` tokens or fewer where the method reads some again.

        Args:
            reading: what the model sees of it, where that is known; it is then not made again.
        """
        with state_file.opened(Path(path)) as file:
            self.require(file.header, f"'{path}'")
            state, reading = yield from read_own(self.method, file, longest, reading)
        self._hold(state, replace(self.header, written=file.header.written, slots=file.header.slots))
        self.file_hash, self._reading = file.hash, reading

    def require(self, header: Header, where: str) -> None:
        """Raise StateMismatchError unless a state with this header, from ``where``, can be read here."""
        require_readable(header, where, self.header, self.method, self.encoder)

    def fork(self) -> Session:
        """A second session that starts from what this one knows; neither sees what the other writes later."""
        twin = copy.copy(self)
        twin.header = replace(self.header, written=list(self.header.written))
        twin.file_hash, twin._cache = "", None
        return twin

    def return_to(self, earlier: Session) -> None:
        """Back to what a fork of this session knows."""
        self._hold(earlier.state, earlier.header)

    def forget(self) -> None:
        """Back to nothing written."""
        self._hold(self.method.init(), replace(self.header, written=[]))
        self.file_hash = ""

    @property
    def bytes(self) -> int:
        """Bytes of the state's tensors."""
        return nbytes(self._state)
