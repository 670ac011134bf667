"""Episodes made of records: what is written, what is asked for, and in which order, by a seed and a number alone.

Every draw is a pure function of (seed, index), so a run that goes on after a break sees what it would have seen.
Text is cut and framed as a session would do it, so that a memory is trained on what it will be given.

    lm      a random window: S segments, then its continuation
    qa      the record's text among other records' text, S segments; the question, framed; its answer is supervised
    dialog  a persona and turns, a segment each; the next turn, framed; its reply is supervised
    mc      of ``prompted`` alone: nothing is written; the data set's prompt and its label

It does not know memories.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from byheart.data.prompts import Asked, asked
from byheart.data.records import DataSet, Record, read, rows
from byheart.errors import InputError, UsageError, require_positive
from byheart.protocol.episode import Batch, Episode, collate
from byheart.text.encoder import ChatEncoder

_TRIES = 16
_CUE = (5, 10)
SUPERVISED = ("label", "all")


@dataclass(frozen=True)
class Weighted:
    """A data set and how often it is drawn."""

    data: DataSet
    weight: float = 1.0

    @classmethod
    def read(cls, source: str) -> Weighted:
        """``PATH`` or ``PATH:weight``, see ``records.read``."""
        path, weight = _weighed(source)
        return cls(read(path), weight)


def prompts_of(sources: Sequence[str], *, seed: int = 0) -> list[Asked]:
    """How ``multitask`` asks each record of ``PATH``, or ``PATH:share`` for a share of them, drawn by the seed.

    Raises UnknownNameError for a data set without a prompt, InputError with a record's number, UsageError.
    """
    found: list[Asked] = []
    for path, share in map(_weighed, sources):
        if not 0 < share <= 1:
            raise UsageError(f"The share of '{path}' must be above 0 and at most 1; it is {share:g}.")
        numbered = list(enumerate(rows(path), start=1))
        if not numbered:
            raise InputError(f"'{path}' holds no record.")
        drawn = random.Random(f"{seed} share").sample(numbered, max(1, round(share * len(numbered))))
        found += [asked(record, number) for number, record in drawn]
    return found


def prompted(encoder: ChatEncoder, prompts: Sequence[Asked], *, supervised: str = "label") -> list[Episode]:
    """An episode a prompt: the prompt, its label, and what ends a text. Nothing is written.

    Args:
        supervised: the ``label`` and the end behind it, or ``all`` tokens, as published.
    """
    end = torch.tensor(sorted(encoder.stop_tokens)[:1], dtype=torch.long)
    episodes: list[Episode] = []
    for each in prompts:
        prompt = encoder.question(each.text, continues=False, use_chat_template=False)
        target = torch.cat([prompt, encoder.continuation(f" {each.right}"), end])
        episodes.append(Episode((), target, len(prompt) if supervised == "label" else 1))
    return episodes


def _weighed(source: str) -> tuple[str, float]:
    """``PATH`` or ``PATH:weight``."""
    path, _, said = source.rpartition(":")
    try:
        return path, float(said)
    except ValueError:
        return source, 1.0


class Mixture:
    """Batches of episodes drawn from several data sets; call it with a step.

    Args:
        encoder: makes the tokens, as a session does.
        batch: episodes of a batch, or with ``batch_tokens`` at most so many.
        segments: how many segments an episode has; drawn for each batch.
        gap: tokens of unrelated text at the end of an lm episode's segments, before the continuation.
        recall: share of the episodes, dialogues aside, that ask for a passage of what was written by its first words:
            every token of the answer must come out of the memory.
        between: tokens of unrelated text at the beginning of every target: nobody writes them into a memory, they stand
            between it and what is predicted.
        batch_tokens: fill a batch with episodes up to so many tokens, so that batches cost alike; 0 counts episodes.
        packed: batches that are drawn together, their episodes dealt to them by length, so that less is padding.
    """

    def __init__(
        self,
        encoder: ChatEncoder,
        sources: Sequence[Weighted],
        *,
        batch: int,
        segments: Sequence[int] = (1, 2, 4, 8),
        segment_tokens: int = 64,
        target_tokens: int = 64,
        gap: int = 0,
        recall: float = 0.0,
        between: int = 0,
        batch_tokens: int = 0,
        packed: int = 1,
        seed: int = 0,
    ) -> None:
        require_positive(batch=batch, packed=packed, segment_tokens=segment_tokens, target_tokens=target_tokens - 1)
        if not sources or min(segments, default=0) < 1 or any(each.weight <= 0 for each in sources):
            raise UsageError("A mixture needs data of weight above 0 and counts of segments of 1 or more.")
        self.encoder, self.sources = encoder, list(sources)
        self.batch, self.segments, self.seed = batch, list(segments), seed
        self.segment_tokens, self.target_tokens, self.gap = segment_tokens, target_tokens, gap
        self.recall, self.between, self.batch_tokens = recall, between, batch_tokens
        self.packed = packed
        # A long text has more windows than a short one; a question or a dialogue is one.
        self._chances = [
            list(accumulate(len(r.context) if r.task == "lm" else 1 for r in each.data.records)) for each in sources
        ]
        self._known: dict[str, Tensor] = {}
        self._drawn: tuple[int, list[Batch]] = (-1, [])

    def __call__(self, step: int) -> Batch:
        """The batch of ``step``."""
        group, place = divmod(step, self.packed)
        drawn = self._drawn
        # Batches are asked for by more than one thread.
        if drawn[0] != group:
            drawn = self._drawn = (group, self._batches(group))
        return drawn[1][place]

    def _batches(self, group: int) -> list[Batch]:
        """The batches of a group: episodes of like lengths beside each other, the batches in a random order."""
        rng = self._random("batch", group)
        segments = rng.choice(self.segments)
        rows = self.batch
        if self.batch_tokens:
            each = segments * self.segment_tokens + self.target_tokens
            rows = min(self.batch, max(1, self.batch_tokens // each))
        numbers = [(group * self.packed + n) * self.batch + row for n in range(self.packed) for row in range(rows)]
        episodes = [self.episode(number, segments) for number in numbers]
        if self.packed > 1:
            episodes.sort(key=lambda one: (max(map(len, one.segments)), len(one.target)))
        dealt = [collate(episodes[first : first + rows]) for first in range(0, len(episodes), rows)]
        rng.shuffle(dealt)
        return dealt

    def episode(self, index: int, segments: int) -> Episode:
        """Episode ``index`` with so many segments. Raises InputError where the data are too short for any."""
        rng = self._random("episode", index)
        for _ in range(_TRIES):
            source = rng.choices(range(len(self.sources)), [each.weight for each in self.sources])[0]
            record = rng.choices(self.sources[source].data.records, cum_weights=self._chances[source])[0]
            made = self._of(record, rng, segments)
            if made is not None:
                return self._spaced(made, record, index)
        raise self._too_short(segments)

    def windows(self, count: int, segments: int) -> list[Episode]:
        """So many episodes to measure on. Raises InputError where the data are too short for any.

        A question or a dialogue is used once, so there are fewer where the data have no more. Neither which ones nor
        their segments depend on ``between``.
        """
        records = [record for source in self.sources for record in source.data.records]
        if any(record.task == "lm" for record in records):
            return [self.episode(index, segments) for index in range(count)]
        found: list[Episode] = []
        for index, record in enumerate(self._random("order", 0).sample(records, len(records))):
            made = self._of(record, self._random("window", index), segments)
            if made is not None:
                found.append(self._spaced(made, record, index))
            if len(found) >= count:
                break
        if not found:
            raise self._too_short(segments)
        return found

    def _of(self, record: Record, rng: random.Random, segments: int) -> Episode | None:
        builders = {"lm": self._continued, "qa": self._asked, "dialog": self._replied}
        made = builders[record.task](record, rng, segments)
        if made is None or record.task == "dialog" or not self.recall or rng.random() >= self.recall:
            return made
        return self._recalled(made, rng)

    def _spaced(self, episode: Episode, record: Record, index: int) -> Episode:
        """The same episode with other records' text ahead of its target, behind what begins every text."""
        if not self.between:
            return episode
        apart = self._ids("\n\n")
        text = self._others(record, self._random("between", index), self.between - len(apart))
        text = torch.cat([text, apart])[-self.between :]
        if len(text) < self.between:
            raise InputError(f"There are no {self.between} tokens of other text to put between a text and its target.")
        begins = len(self._begins) if torch.equal(episode.target[: len(self._begins)], self._begins) else 0
        target = torch.cat([episode.target[:begins], text, episode.target[begins:]])
        return Episode(episode.segments, target, episode.answer + self.between)

    def _too_short(self, segments: int) -> InputError:
        names = ", ".join(each.data.source for each in self.sources)
        return InputError(
            f"No text of {names} is long enough for {segments} segments of {self.segment_tokens} tokens "
            f"and a target of {self.target_tokens}."
        )

    # ---- one builder a task ----

    def _continued(self, record: Record, rng: random.Random, segments: int) -> Episode | None:
        text, begins = self._ids(record.text), self._begins
        room = segments * self.segment_tokens - len(begins)
        gap = min(self.gap, room // 2)
        need = room - gap + self.target_tokens
        start = rng.randrange(max(1, len(text) - need + 1))
        window = text[start : start + need]
        if len(window) < 2 * self.target_tokens:
            return None
        history, target = window[: -self.target_tokens], window[-self.target_tokens :]
        before = self._others(record, rng, room - gap - len(history), ahead=True)
        after = self._others(record, rng, gap)
        return self._made(torch.cat([begins, before, history, after]), segments, target, 1)

    def _asked(self, record: Record, rng: random.Random, segments: int) -> Episode | None:
        text, begins = self._ids(record.context), self._begins
        # What people write does not end where a segment does.
        spare = rng.choice([0, rng.randrange(self.segment_tokens)])
        room = segments * self.segment_tokens - len(begins) - spare
        if len(text) > room:
            where = record.context.find(record.answer)
            if where < 0:
                return None
            first = len(self._ids(record.context[:where]))
            last = min(first + len(self._ids(record.answer)) + 1, len(text))
            start = rng.randint(*sorted((max(0, last - room), min(first, len(text) - room))))
            text = text[start : start + room]
        fill = room - len(text)
        ahead = rng.randint(0, fill)
        before, after = self._others(record, rng, ahead, ahead=True), self._others(record, rng, fill - ahead)
        target, answer = self._exchange(record.question, record.answer)
        return self._made(torch.cat([begins, before, text, after]), segments, target, answer)

    def _replied(self, record: Record, rng: random.Random, segments: int) -> Episode | None:
        persona = [record.persona] if record.persona else []
        turns = segments - len(persona)
        # The persona is of the one who speaks second.
        replies = [k for k in range(turns + 1, len(record.turns)) if k % 2 or not persona]
        if not replies:
            return None
        reply = rng.choice(replies)
        texts = [*persona, *record.turns[reply - 1 - turns : reply - 1]]
        rows = [self._ids(f"{text}\n")[: self.segment_tokens] for text in texts]
        rows[0] = torch.cat([self._begins, rows[0]])
        target, answer = self._exchange(record.turns[reply - 1], record.turns[reply])
        return Episode(tuple(rows), target, answer)

    def _recalled(self, episode: Episode, rng: random.Random) -> Episode:
        """The same text, and a question for what follows some words in it."""
        text, cue = torch.cat(episode.segments), rng.randint(*_CUE)
        start = rng.randrange(max(1, len(text) - cue - self.target_tokens + 1))
        words, passage = (
            self.encoder.decode(part)
            for part in (text[start : start + cue], text[start + cue : start + cue + self.target_tokens])
        )
        if not passage.strip():
            return episode
        target, answer = self._exchange(f"How does the text go on after “{words.strip()}”?", passage)
        return Episode(episode.segments, target, answer)

    # ---- tokens ----

    def _made(self, text: Tensor, segments: int, target: Tensor, answer: int) -> Episode | None:
        rows = torch.split(text, self.segment_tokens)
        if len(rows) != segments:
            # Nothing was there to fill with.
            rows = torch.tensor_split(text, segments)
        return Episode(tuple(rows), target, answer) if all(map(len, rows)) else None

    def _exchange(self, question: str, answer: str) -> tuple[Tensor, int]:
        """A framed question and its answer, and where the answer begins."""
        frame, stops = self.encoder.template, self.encoder.stop_tokens
        asked = torch.cat([self._begins, self._ids(f"{frame.question}{question}{frame.answer}")])
        # A chat template says itself where an answer begins and ends; bare lines go on after a space.
        space = "" if frame.end else " "
        reply = self._ids(f"{space}{answer.strip()}")[: self.target_tokens]
        end = [token for token in self._ids(frame.end).tolist() if token in stops][:1] or sorted(stops)[:1]
        return torch.cat([asked, reply, torch.tensor(end, dtype=torch.long)]), len(asked)

    def _others(self, record: Record, rng: random.Random, count: int, *, ahead: bool = False) -> Tensor:
        """So many tokens of other records' text to stand behind, or ``ahead`` of, a record's; none if it is alone."""
        between = self._ids("\n\n")
        pieces: list[Tensor] = []
        for _ in range(_TRIES + count):
            if sum(map(len, pieces)) >= count:
                break
            other = rng.choice(rng.choice(self.sources).data.records)
            if other.text != record.text:
                text = self._ids(other.text)
                start = rng.randrange(len(text)) if len(text) > 4 * count else 0
                text = text[start : start + count]
                pieces += [text, between] if ahead else [between, text]
        joined = torch.cat([self._ids(""), *pieces])
        return joined[max(0, len(joined) - count) :] if ahead else joined[:count]

    def _ids(self, text: str) -> Tensor:
        """A text's tokens, made once."""
        if text not in self._known:
            self._known[text] = self.encoder.continuation(text)
        return self._known[text]

    @cached_property
    def _begins(self) -> Tensor:
        """What the tokenizer puts before every text."""
        return torch.tensor(self.encoder.start, dtype=torch.long)

    def _random(self, what: str, index: int) -> random.Random:
        return random.Random(f"{self.seed} {what} {index}")
