"""Episodes made of records: what is written, what is asked for, and in which order, by a seed and a number alone.

Every draw is a pure function of (seed, index), so a resumed run sees what it would have seen.
Text becomes tokens as in a session, chat template included, so that a method is trained on what it will be given.

    lm      a random window: S segments, then its continuation
    qa      the record's text among other records' text, S segments; the question as a chat turn; its answer is
            supervised
    dialog  a persona and turns, a segment each; the next turn as a chat turn; its reply is supervised
    mc      of ``prompted`` alone: nothing is written; the data set's prompt and its label

It does not know methods.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import accumulate

import torch
from torch import Tensor

from byheart.data.prompts import FilledPrompt, fill_prompt
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
        path, weight = split_weight(source)
        return cls(read(path), weight)


def prompts_of(sources: Sequence[str], *, seed: int = 0, most: int = 0) -> list[FilledPrompt]:
    """The prompts by which ``multitask`` asks the records of ``PATH``.

    ``PATH:share`` takes a share of them, drawn by the seed.

    Args:
        most: the first so many records of each source alone, of which the share is then taken; 0 is all.

    Raises UnknownNameError for a data set without a prompt, InputError with a record's number, UsageError.
    """
    found: list[FilledPrompt] = []
    for path, share in map(split_weight, sources):
        if not 0 < share <= 1:
            raise UsageError(f"The share of '{path}' must be above 0 and at most 1; it is {share:g}.")
        numbered = list(enumerate(rows(path), start=1))[: most or None]
        if not numbered:
            raise InputError(f"'{path}' holds no record.")
        drawn = random.Random(f"{seed} share").sample(numbered, max(1, round(share * len(numbered))))
        found += [fill_prompt(record, number) for number, record in drawn]
    return found


def prompted(encoder: ChatEncoder, prompts: Sequence[FilledPrompt], *, supervised: str = "label") -> list[Episode]:
    """An episode a prompt: the prompt, its label, and what ends a text. Nothing is written.

    Args:
        supervised: the ``label`` and the end after it, or ``all`` tokens, as published.
    """
    end = torch.tensor(sorted(encoder.stop_tokens)[:1], dtype=torch.long)
    episodes: list[Episode] = []
    for question in prompts:
        prompt = encoder.question(question.text, continues=False, use_chat_template=False)
        target = torch.cat([prompt, encoder.continuation(f" {question.right}"), end])
        episodes.append(Episode((), target, len(prompt) if supervised == "label" else 1))
    return episodes


def pack(episodes: Sequence[Episode], tokens: int) -> list[Episode]:
    """Targets one after another, cut into pieces of so many tokens, in which all is learned; nothing is padding.

    What is left over at the end is an episode of its own where it has a token to predict.
    """
    whole = torch.cat([episode.target for episode in episodes])
    return [Episode((), piece, 1) for piece in torch.split(whole, tokens) if len(piece) > 1]


def split_weight(source: str) -> tuple[str, float]:
    """``PATH`` or ``PATH:weight``, as the path and its weight; 1 where none is given."""
    path, _, weight = source.rpartition(":")
    try:
        return path, float(weight)
    except ValueError:
        return source, 1.0


@dataclass(eq=False, repr=False)
class Mixture:
    """Batches of episodes drawn from several data sets; call it with a step.

    Args:
        encoder: makes the tokens, as a session does.
        batch: episodes per batch, or with ``batch_tokens`` at most so many.
        segments: how many segments an episode has; drawn for each batch.
        distractor_tokens: of unrelated text that is written last in an lm episode, before its continuation.
        recall: share of the episodes, dialogues aside, that ask for a passage of what was written by its first words:
            every token of the answer must come out of the memory.
        target_distractor_tokens: of unrelated text at the beginning of every target: they are never written, and stand
            between the memory and what is predicted.
        own_start: the method's prefix begins with a first token of its own, so that no text and no target does.
        batch_tokens: fill a batch with episodes up to so many tokens, so that batches cost alike; 0 counts episodes.
        packed: batches that are drawn together, their episodes dealt to them by length, so that less is padding.
    """

    encoder: ChatEncoder
    sources: Sequence[Weighted]
    _: KW_ONLY
    batch: int
    segments: Sequence[int] = (1, 2, 4, 8)
    segment_tokens: int = 64
    target_tokens: int = 64
    distractor_tokens: int = 0
    recall: float = 0.0
    target_distractor_tokens: int = 0
    batch_tokens: int = 0
    packed: int = 1
    own_start: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = {"segment_tokens": self.segment_tokens, "target_tokens": self.target_tokens - 1}
        require_positive(batch=self.batch, packed=self.packed, **sizes)
        if not self.sources or min(self.segments, default=0) < 1 or any(source.weight <= 0 for source in self.sources):
            raise UsageError("A mixture needs data of weight above 0 and counts of segments of 1 or more.")
        self._start = torch.tensor([] if self.own_start else self.encoder.start, dtype=torch.long)
        # A long text has more windows than a short one; a question or a dialogue is one.
        self._chances = [
            list(accumulate(len(r.context) if r.task == "lm" else 1 for r in source.data.records))
            for source in self.sources
        ]
        self._known: dict[str, Tensor] = {}
        self._drawn: tuple[int, list[Batch]] = (-1, [])

    def __call__(self, step: int) -> Batch:
        """The batch of ``step``."""
        group, place = divmod(step, self.packed)
        drawn = self._drawn
        # More than one thread asks for batches.
        if drawn[0] != group:
            drawn = self._drawn = (group, self._batches(group))
        return drawn[1][place]

    def _batches(self, group: int) -> list[Batch]:
        """The batches of a group: episodes of like lengths beside each other, the batches in a random order."""
        rng = self._random("batch", group)
        segments = rng.choice(self.segments)
        rows = self.batch
        if self.batch_tokens:
            episode_tokens = segments * self.segment_tokens + self.target_tokens
            rows = min(self.batch, max(1, self.batch_tokens // episode_tokens))
        numbers = [(group * self.packed + n) * self.batch + row for n in range(self.packed) for row in range(rows)]
        episodes = [self.episode(number, segments) for number in numbers]
        if self.packed > 1:
            episodes.sort(key=lambda episode: (max(map(len, episode.segments)), len(episode.target)))
        dealt = [collate(episodes[first : first + rows]) for first in range(0, len(episodes), rows)]
        rng.shuffle(dealt)
        return dealt

    def episode(self, index: int, segments: int) -> Episode:
        """Episode ``index`` with so many segments. Raises InputError where the data are too short for any."""
        rng = self._random("episode", index)
        for _ in range(_TRIES):
            source = rng.choices(range(len(self.sources)), [source.weight for source in self.sources])[0]
            record = rng.choices(self.sources[source].data.records, cum_weights=self._chances[source])[0]
            episode = self._build(record, rng, segments)
            if episode is not None:
                return self._add_distractors(episode, record, index)
        raise self._too_short(segments)

    def windows(self, count: int, segments: int) -> list[Episode]:
        """So many episodes to measure on. Raises InputError where the data are too short for any.

        A question or a dialogue is used once, so there are fewer where the data have no more. Neither which ones nor
        their segments depend on ``target_distractor_tokens``.
        """
        records = [record for source in self.sources for record in source.data.records]
        if any(record.task == "lm" for record in records):
            return [self.episode(index, segments) for index in range(count)]
        found: list[Episode] = []
        for index, record in enumerate(self._random("order", 0).sample(records, len(records))):
            episode = self._build(record, self._random("window", index), segments)
            if episode is not None:
                found.append(self._add_distractors(episode, record, index))
            if len(found) >= count:
                break
        if not found:
            raise self._too_short(segments)
        return found

    def _build(self, record: Record, rng: random.Random, segments: int) -> Episode | None:
        builders = {"lm": self._build_continuation, "qa": self._build_answer, "dialog": self._build_reply}
        episode = builders[record.task](record, rng, segments)
        if episode is None or record.task == "dialog" or not self.recall or rng.random() >= self.recall:
            return episode
        return self._build_recall(episode, rng)

    def _add_distractors(self, episode: Episode, record: Record, index: int) -> Episode:
        """The same episode with other records' text ahead of its target, but after the BOS token."""
        count = self.target_distractor_tokens
        if not count:
            return episode
        break_ = self._encode("\n\n")
        text = self._draw_others(record, self._random("between", index), count - len(break_))
        text = torch.cat([text, break_])[-count:]
        if len(text) < count:
            raise InputError(f"There are no {count} tokens of other text to put between a text and its target.")
        start = len(self._start) if torch.equal(episode.target[: len(self._start)], self._start) else 0
        target = torch.cat([episode.target[:start], text, episode.target[start:]])
        return Episode(episode.segments, target, episode.answer + count)

    def _too_short(self, segments: int) -> InputError:
        names = ", ".join(source.data.source for source in self.sources)
        return InputError(
            f"No text of {names} is long enough for {segments} segments of {self.segment_tokens} tokens "
            f"and a target of {self.target_tokens}."
        )

    # ---- one builder for each task ----

    def _build_continuation(self, record: Record, rng: random.Random, segments: int) -> Episode | None:
        text, start_tokens = self._encode(record.text), self._start
        room = segments * self.segment_tokens - len(start_tokens)
        distractor_tokens = min(self.distractor_tokens, room // 2)
        need = room - distractor_tokens + self.target_tokens
        start = rng.randrange(max(1, len(text) - need + 1))
        window = text[start : start + need]
        if len(window) < 2 * self.target_tokens:
            return None
        history, target = window[: -self.target_tokens], window[-self.target_tokens :]
        before = self._draw_others(record, rng, room - distractor_tokens - len(history), ahead=True)
        after = self._draw_others(record, rng, distractor_tokens)
        return self._split(torch.cat([start_tokens, before, history, after]), segments, target, 1)

    def _build_answer(self, record: Record, rng: random.Random, segments: int) -> Episode | None:
        text, start_tokens = self._encode(record.context), self._start
        # What people write does not end where a segment does.
        spare = rng.choice([0, rng.randrange(self.segment_tokens)])
        room = segments * self.segment_tokens - len(start_tokens) - spare
        if len(text) > room:
            where = record.context.find(record.answer)
            if where < 0:
                return None
            first = len(self._encode(record.context[:where]))
            last = min(first + len(self._encode(record.answer)) + 1, len(text))
            start = rng.randint(*sorted((max(0, last - room), min(first, len(text) - room))))
            text = text[start : start + room]
        fill = room - len(text)
        ahead = rng.randint(0, fill)
        before, after = self._draw_others(record, rng, ahead, ahead=True), self._draw_others(record, rng, fill - ahead)
        target, answer = self._make_exchange(record.question, record.answer)
        return self._split(torch.cat([start_tokens, before, text, after]), segments, target, answer)

    def _build_reply(self, record: Record, rng: random.Random, segments: int) -> Episode | None:
        persona = [record.persona] if record.persona else []
        turns = segments - len(persona)
        # The persona is of the one who speaks second.
        replies = [k for k in range(turns + 1, len(record.turns)) if k % 2 or not persona]
        if not replies:
            return None
        reply = rng.choice(replies)
        texts = [*persona, *record.turns[reply - 1 - turns : reply - 1]]
        rows = [self._encode(f"{text}\n")[: self.segment_tokens] for text in texts]
        rows[0] = torch.cat([self._start, rows[0]])
        target, answer = self._make_exchange(record.turns[reply - 1], record.turns[reply])
        return Episode(tuple(rows), target, answer)

    def _build_recall(self, episode: Episode, rng: random.Random) -> Episode:
        """The same text, and a question about what follows some words in it."""
        text, cue = torch.cat(episode.segments), rng.randint(*_CUE)
        start = rng.randrange(max(1, len(text) - cue - self.target_tokens + 1))
        words, passage = (
            self.encoder.decode(part)
            for part in (text[start : start + cue], text[start + cue : start + cue + self.target_tokens])
        )
        if not passage.strip():
            return episode
        target, answer = self._make_exchange(f"How does the text go on after “{words.strip()}”?", passage)
        return Episode(episode.segments, target, answer)

    # ---- tokens ----

    def _split(self, text: Tensor, segments: int, target: Tensor, answer: int) -> Episode | None:
        rows = torch.split(text, self.segment_tokens)
        if len(rows) != segments:
            # Nothing was there to fill with.
            rows = torch.tensor_split(text, segments)
        return Episode(tuple(rows), target, answer) if all(map(len, rows)) else None

    def _make_exchange(self, question: str, answer: str) -> tuple[Tensor, int]:
        """A question as a chat turn with its answer, and where the answer begins."""
        template, stops = self.encoder.template, self.encoder.stop_tokens
        prompt = torch.cat([self._start, self._encode(f"{template.question}{question}{template.answer}")])
        # A chat template says itself where an answer begins and ends; in bare lines it follows a space.
        space = "" if template.end else " "
        reply = self._encode(f"{space}{answer.strip()}")[: self.target_tokens]
        end = [token for token in self._encode(template.end).tolist() if token in stops][:1] or sorted(stops)[:1]
        return torch.cat([prompt, reply, torch.tensor(end, dtype=torch.long)]), len(prompt)

    def _draw_others(self, record: Record, rng: random.Random, count: int, *, ahead: bool = False) -> Tensor:
        """So many tokens of other records' text to follow a record's, or stand ``ahead`` of it; none if it is alone."""
        break_ = self._encode("\n\n")
        texts: list[Tensor] = []
        for _ in range(_TRIES + count):
            if sum(map(len, texts)) >= count:
                break
            other = rng.choice(rng.choice(self.sources).data.records)
            if other.text != record.text:
                text = self._encode(other.text)
                start = rng.randrange(len(text)) if len(text) > 4 * count else 0
                text = text[start : start + count]
                texts += [text, break_] if ahead else [break_, text]
        joined = torch.cat([self._encode(""), *texts])
        return joined[max(0, len(joined) - count) :] if ahead else joined[:count]

    def _encode(self, text: str) -> Tensor:
        """A text's tokens, made once."""
        if text not in self._known:
            self._known[text] = self.encoder.continuation(text)
        return self._known[text]

    def _random(self, what: str, index: int) -> random.Random:
        return random.Random(f"{self.seed} {what} {index}")
