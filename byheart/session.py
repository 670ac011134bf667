"""Text in, text out: a memory with a tokenizer, a chat template and a history of what was written.

A session owns one state. It cuts text into what its memory takes, frames it as the chat template wants, and keeps
what a reading costs to prepare until the next write. It does not know which mechanism it has.

How a text and a question are framed, where the model has a chat template and the memory keeps text as a conversation:

    written:  <system and user header> text <end of turn, assistant header> I have read it. <end of turn, user header>
    asked:    question <end of turn, assistant header>

A memory that keeps no exact text is given the bare text, and a question is a conversation of its own.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from byheart import shipped, state as states
from byheart.backbone import Backbone
from byheart.cache import PrefixCache
from byheart.decoding import Decoding, generate, require_contrast
from byheart.errors import InputError, UsageError
from byheart.frame import RECEIPT, Frame, special
from byheart.memories import build, find
from byheart.memory import Memory, is_learned, read_card
from byheart.models import DEFAULT, located, open_tokenizer
from byheart.reading import Reading
from byheart.state import Header, State, Written
from byheart.streaming import text_of, texts_of

Progress = Callable[[int, int], None]


class Session:
    """One memory of one user: write texts, ask about them, save, load, fork, forget.

    Args:
        state: what was kept before; a fresh state without it.
        written: what was written into ``state``.
        learned: the folder that holds the memory's learned parts; kept with states so that they can be opened again.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        memory: Memory,
        *,
        state: State | None = None,
        written: Sequence[Written] = (),
        learned: str = "",
    ) -> None:
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.memory = memory
        self.state: State = memory.init() if state is None else state
        self.header = Header(
            mechanism=memory.name,
            options=memory.options(),
            backbone=backbone.fingerprint,
            tokenizer=_fingerprint(tokenizer),
            adapter=memory.fingerprint,
            model=backbone.source,
            dtype=str(backbone.dtype).removeprefix("torch."),
            learned=learned,
            capacity=memory.capacity,
            written=list(written),
        )
        self._reading: Reading | None = None
        self._cache: PrefixCache | None = None

    # ---- writing ----

    def write(self, text: str, *, source: str = "text", progress: Progress | None = None) -> Written:
        """Put ``text`` into the memory. Raises InputError; the memory then stays as it was.

        Args:
            source: where the text came from, for the record.
            progress: called with the tokens done and the tokens in all.
        """
        if not text.strip():
            raise InputError("There is nothing to write: the text is empty.")
        tokens = self._framed(text)
        entry = Written.now(source, tokens=tokens.shape[1], characters=len(text))
        self._absorb(tokens, progress)
        self.header = self.header.with_written(entry)
        return entry

    def _framed(self, text: str, framed: bool = True) -> Tensor:
        """The tokens (1, T) of a text as it is written, or of the bare text."""
        _require_characters(text)
        first = not self.header.written
        parts = ["", text]
        if framed and self.memory.keeps_turns:
            parts = [self.frame.opening if first else "", text, self.frame.receipt]
        return self._encode(*parts, first=first)

    def write_turn(self, question: str, answer: str) -> Written:
        """Put a turn of a conversation into the memory: what was asked and what was answered."""
        _require_characters(question + answer)
        first = not self.header.written
        if not self.memory.keeps_turns:
            parts = ["", question, "\n", answer, "\n"]
        elif self.tokenizer.chat_template:
            before, _, after = self.frame.receipt.partition(RECEIPT)
            parts = [self.frame.opening if first else "", question, before, answer, after]
        else:
            parts = [self.frame.question, question, f"{self.frame.answer} ", answer, self.frame.receipt]
        tokens = self._encode(*parts, first=first)
        entry = Written.now("chat", tokens=tokens.shape[1], characters=len(question) + len(answer))
        self._absorb(tokens, None)
        self.header = self.header.with_written(entry)
        return entry

    def _absorb(self, tokens: Tensor, progress: Progress | None) -> None:
        state, done = self.state, 0
        if progress is not None:
            progress(done, tokens.shape[1])
        for piece in self.memory.pieces(tokens):
            with torch.no_grad():
                state = self.memory.write(state, piece)
            done += piece.shape[1]
            if progress is not None:
                progress(done, tokens.shape[1])
        self.state, self._reading, self._cache = state, None, None

    # ---- asking ----

    def ask(self, question: str, *, stop: str | Sequence[str] = (), **decoding: Any) -> str:
        """The answer to ``question``; options as in ``Decoding``, and ``stop`` strings that end it."""
        return "".join(self.stream(question, stop=stop, **decoding)).strip()

    def stream(self, question: str, *, stop: str | Sequence[str] = (), **decoding: Any) -> Iterator[str]:
        """The answer piece by piece, as it is made. Raises InputError before the first piece."""
        self._require_written()
        return self.reply(question, stop=stop, **decoding)

    def reply(self, question: str, *, stop: str | Sequence[str] = (), **decoding: Any) -> Iterator[str]:
        """As ``stream``, for a turn of a conversation, which may be its first: the memory may be empty."""
        how, stops = _decoding(decoding), _stops(stop)
        prompts, reading = (self.prompt(question), self.prompt(question, alone=True)), self.reading_for(question)
        require_contrast(how, [reading])
        return text_of(self._answer(*prompts, reading, how), self.tokenizer, stops)

    def _answer(self, prompt: Tensor, alone: Tensor, reading: Reading, how: Decoding) -> Iterator[int | None]:
        """The answer's tokens. While they are made, nobody else has the cache; afterwards the session keeps it."""
        cache = self._cache if self._reading is reading else None
        if cache is not None:
            self._cache = None
        elif how.context_aware is None:
            with torch.no_grad(), self.backbone.reading([replace(reading, deltas={})]) as cache:
                pass
        own: dict[str, Any] = {"stop_tokens": self.stop_tokens, "cache": cache, "others": [alone]}
        steps = generate(self.backbone, [prompt], [reading], decoding=how, **own)
        try:
            for step in steps:
                yield step[0]
        finally:
            steps.close()
            if self._reading is reading and cache is not None:
                self._cache = cache

    def prompt(self, question: str, *, framed: bool = True, alone: bool = False) -> Tensor:
        """The tokens (T,) that ask ``question``, or the bare text for the model to go on from. Raises InputError.

        ``alone``: as where nothing was written.
        """
        if not question.strip():
            raise InputError("There is nothing to ask: the question is empty.")
        _require_characters(question)
        opened = self.memory.keeps_turns and bool(self.header.written) and not alone
        if not framed:
            return self._encode("", question, first=not opened)[0]
        begun = opened and bool(self.tokenizer.chat_template)
        return self._encode("" if begun else self.frame.question, question, self.frame.answer, first=not opened)[0]

    def _require_written(self) -> None:
        if not self.header.written:
            raise InputError("Nothing has been written into this memory; write a text first.")

    @property
    def reading(self) -> Reading:
        """What the model sees of the memory; made once after each write."""
        if self._reading is None:
            with torch.no_grad():
                self._reading = self.memory.read(self.state)
        return self._reading

    def reading_for(self, question: str) -> Reading:
        """What the model sees of the memory when it is asked ``question``: ``reading``, unless the memory selects."""
        part = self.memory.select(self.state, self.tokens(question))
        if part is self.state:
            return self.reading
        with torch.no_grad():
            return self.memory.read(part)

    # ---- keeping ----

    def save(self, path: str | Path) -> int:
        """Write the memory to a file, atomically; gives its bytes. Raises StateError, the earlier file intact."""
        self.header = replace(self.header, rows=self.reading.length)
        return states.save(Path(path), self.state, self.header)

    def load(self, path: str | Path) -> None:
        """Go on from a saved memory. Raises StateError; the present memory then stays."""
        state, header = states.load(Path(path))
        header.require(self.header, f"'{path}'")
        self.state = {name: tensor.to(self.backbone.device) for name, tensor in state.items()}
        self.header = replace(self.header, written=header.written, rows=header.rows)
        self._reading = self._cache = None

    def fork(self) -> Session:
        """A second session that starts from what this one knows; neither sees what the other writes later."""
        twin = copy.copy(self)
        twin.header = replace(self.header, written=list(self.header.written))
        twin._cache = None
        return twin

    def forget(self) -> None:
        """Back to nothing written."""
        self.state = self.memory.init()
        self.header = replace(self.header, written=[])
        self._reading = self._cache = None

    def tokens(self, text: str, *, framed: bool = False) -> Tensor:
        """The tokens (T,) of text that goes on from a prompt; behind bare lines of a framed one, after a blank."""
        text = f" {text}" if framed and not self.tokenizer.chat_template else text
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor(ids, dtype=torch.long, device=self.backbone.device)

    @property
    def bytes(self) -> int:
        """Bytes of the state's tensors."""
        return states.nbytes(self.state)

    # ---- tokens ----

    @cached_property
    def frame(self) -> Frame:
        """What the chat template puts around texts and questions."""
        return Frame.of(self.tokenizer)

    @cached_property
    def stop_tokens(self) -> set[int]:
        """Tokens that end an answer: the model's, the tokenizer's, and the chat template's end of turn."""
        model: Any = self.backbone.stop_tokens
        ends = [*model, self.tokenizer.eos_token_id, *special(self.tokenizer, self.frame.end)[:1]]
        return {token for token in ends if token is not None}

    def _encode(self, *parts: str, first: bool) -> Tensor:
        """Token ids (1, T) of frame and user text in turn; a special token's name in a user's text is only text."""
        named = any(mark in text for text in parts[1::2] for mark in self.tokenizer.all_special_tokens)
        pieces = [(part, n % 2 == 1) for n, part in enumerate(parts)] if named else [("".join(parts), False)]
        ids: list[int] = []
        for piece, plain in pieces:
            ids += self.tokenizer(piece, add_special_tokens=False, split_special_tokens=plain).input_ids
        begins = list(self.tokenizer("").input_ids) if first else []
        if begins and ids[: len(begins)] == begins:
            begins = []
        return torch.tensor([begins + ids], dtype=torch.long, device=self.backbone.device)


def load(
    model: str | Backbone = DEFAULT,
    *,
    memory: str = "full",
    dtype: str = "auto",
    device: str = "auto",
    tokenizer: PreTrainedTokenizerBase | None = None,
    trained: bool = True,
    **options: Any,
) -> Session:
    """A session with an empty memory over a model.

    Args:
        model: an alias (``smollm2``), a hub id, a local folder, a GGUF file, or an opened Backbone.
        memory: the mechanism's name, see ``byheart.memories.BUILT_IN``; or a folder that ``save_pretrained`` wrote,
            with its learned parts and options.
        trained: use the learned parts that come with byheart, where there are some for this model and these options.
        options: of the mechanism.

    Raises ModelError, UnknownNameError, UsageError, CheckpointError or StateMismatchError.
    """
    learned = located(memory) if is_learned(memory) else ""
    card: dict[str, Any] = read_card(learned) if learned else {"mechanism": memory, "options": {}}
    kind = find(card["mechanism"])
    backbone = model if isinstance(model, Backbone) else Backbone.open(located(model), dtype=dtype, device=device)
    own = shipped.find(memory, backbone.fingerprint, options) if trained and not learned else None
    card = read_card(own) if own is not None else card
    words = tokenizer if tokenizer is not None else open_tokenizer(backbone.source)
    turn = kind.framed(**Frame.of(words).tokens(words))
    made = build(card["mechanism"], backbone, **{**turn, **card["options"], **options})
    if learned or own is not None:
        made.load_pretrained(learned or str(own))
    return Session(backbone, words, made, learned=learned)


def open_state(path: str | Path, *, model: str = "", dtype: str = "auto", device: str = "auto") -> Session:
    """A session that goes on from a saved memory, over the model that the file names. Raises StateError, ModelError.

    Args:
        model: where the same model is now, if not where the file says.
        dtype: ``auto`` is the one that the file was made in.
    """
    header = states.load_header(Path(path))
    session = load(
        model or header.model,
        memory=header.learned or header.mechanism,
        dtype=header.dtype if dtype == "auto" else dtype,
        device=device,
        **header.options,
    )
    session.load(path)
    return session


def write_many(
    sessions: Sequence[Session], texts: Sequence[str], *, source: str = "text", framed: bool | Sequence[bool] = True
) -> None:
    """Write each session its own text, those of one length in one batch; sessions share one memory.

    What is not ``framed``, all or each, is written bare, for bare questions to go on from.
    """
    if not sessions or len(sessions) != len(texts):
        raise UsageError(f"There are {len(texts)} texts for {len(sessions)} sessions.")
    memory = sessions[0].memory
    if any(session.memory is not memory for session in sessions):
        raise UsageError("Sessions written together must share one memory.")
    each = [framed] * len(texts) if isinstance(framed, bool) else framed
    tokens = [session._framed(text, turns) for session, text, turns in zip(sessions, texts, each, strict=True)]
    states = [session.state for session in sessions]
    for pieces in zip_longest(*map(memory.pieces, tokens)):
        left = [n for n, piece in enumerate(pieces) if piece is not None]
        with torch.no_grad():
            written = memory.write_many([states[n] for n in left], [pieces[n] for n in left])
        for n, state in zip(left, written, strict=True):
            states[n] = state
    for session, state, row, text in zip(sessions, states, tokens, texts, strict=True):
        session.state, session._reading, session._cache = state, None, None
        session.header = session.header.with_written(Written.now(source, tokens=row.shape[1], characters=len(text)))


def ask_many(
    sessions: Sequence[Session], questions: Sequence[str], *, stop: str | Sequence[str] = (), **decoding: Any
) -> list[str]:
    """Ask each session its own question, as ``ask`` does, all in one batch over one backbone; memories may differ."""
    if not sessions or len(sessions) != len(questions):
        raise UsageError(f"There are {len(questions)} questions for {len(sessions)} sessions.")
    first = sessions[0]
    for session in sessions:
        session._require_written()
    if any(session.backbone is not first.backbone for session in sessions):
        raise UsageError("Sessions asked together must share one backbone.")
    how, pairs = _decoding(decoding), list(zip(sessions, questions, strict=True))
    readings = [session.reading_for(question) for session, question in pairs]
    require_contrast(how, readings)
    prompts, others = ([each.prompt(question, alone=alone) for each, question in pairs] for alone in (False, True))
    own: dict[str, Any] = {"others": others, "decoding": how, "stop_tokens": first.stop_tokens}
    steps = generate(first.backbone, prompts, readings, **own)
    return [text.strip() for text in texts_of(steps, first.tokenizer, _stops(stop))]


def _stops(stop: str | Sequence[str]) -> list[str]:
    stops = [stop] if isinstance(stop, str) else list(stop)
    if "" in stops:
        raise UsageError("A stop string must not be empty: every answer would end before it began.")
    return stops


def _decoding(options: dict[str, Any]) -> Decoding:
    try:
        return Decoding(**options)
    except TypeError as error:
        raise UsageError(f"Unknown option: {error}.") from error


def _require_characters(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        place = error.start + 1
        raise InputError(f"Character {place} of the text is half a character: it was not UTF-8.") from error


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    words = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr(words).encode()).hexdigest()[:32]
