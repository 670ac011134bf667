"""An engine without a model: its answers tell what it was asked, and what its memory holds."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from byheart.errors import BusyError, InputError
from byheart.protocol import state_file
from byheart.protocol.state import Header, Written
from byheart.serving.jobs import Ask, Finished, Load, NewState, Piece, Progress, TokenScore, Write

MODEL = "tiny"
HEADER = Header("full", {}, "fingerprint", "tokenizer", "", MODEL)


@dataclass
class FakeEngine:
    """Answers ``<memory> | <question>`` word by word; what was written is kept as bytes in a real state file."""

    asked: list[Ask] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    residents: list[str] = field(default_factory=list)
    closed: int = 0
    """Answers that were let go of before they ended."""
    running: int = 0
    busy: int = 0
    """How many more questions are turned away."""
    delay: float = 0.0
    error: Exception | None = None
    error_after: int = 1 << 30
    """Pieces that come before the error."""

    async def ask(self, job: Ask) -> AsyncIterator[Piece | Finished]:
        self.asked.append(job)
        question = job.prompt if isinstance(job.prompt, str) else job.prompt[-1].content
        if question == "busy" or self.busy:
            self.busy = max(0, self.busy - 1)
            raise BusyError("Too many questions wait.", 2.0 if question == "busy" else 0.01)
        memory = read_text(job.memory.fetch()) if job.memory else ""
        words = f"{memory} | {question}".split(" ") if question != "endless" else ["word"] * (1 << 19)
        self.running += 1
        is_done = False
        try:
            for number, word in enumerate(words[: job.decoding.max_tokens]):
                if number >= self.error_after and self.error is not None:
                    raise self.error
                await asyncio.sleep(self.delay)
                text = word if number == 0 else f" {word}"
                scores = () if job.logprobs is None else (TokenScore(text, -0.5, ((text, -0.5),) * job.logprobs),)
                yield Piece(text, scores)
            is_done = True
        finally:
            self.running -= 1
            self.closed += not is_done
        reason = "length" if len(words) > job.decoding.max_tokens else "stop"
        cached = len(memory)
        yield Finished(reason, cached + len(question), cached, min(len(words), job.decoding.max_tokens))

    async def write(self, job: Write, progress: Progress | None = None) -> NewState:
        before = read_text(job.memory.fetch()) if job.memory else ""
        entries = []
        for number, new in enumerate(job.texts):
            if not new.text.strip():
                raise InputError("There is nothing to write: the text is empty.")
            await asyncio.sleep(self.delay)
            before += new.text + (new.answer or "")
            entries.append(Written.now(new.source, tokens=len(new.text), characters=len(new.text)))
            if progress:
                progress(number + 1, len(job.texts))
        header = Header(**{**vars(HEADER), "written": entries, "slots": len(before)})
        path = job.folder / f"{secrets.token_hex(8)}.safetensors"
        job.folder.mkdir(parents=True, exist_ok=True)
        save_text(path, before, header)
        raw = path.read_bytes()
        return NewState(path, hashlib.sha256(raw).hexdigest(), len(raw), header, tuple(entries))

    async def examine(self, path: Path, model: str, tenant: str = "") -> Header:
        return state_file.load(path)[1]

    def drop(self, keys: Sequence[str]) -> int:
        self.dropped.extend(keys)
        return len(keys)

    @property
    def models(self) -> Mapping[str, str]:
        return {MODEL: "fingerprint", "org/other:7b": "other"}

    @property
    def slot_bytes(self) -> Mapping[str, int]:
        return {MODEL: 1024, "org/other:7b": 4096}

    @property
    def load(self) -> Load:
        return Load(self.running, 0, 0, 0)

    def close(self, timeout: float = 0.0) -> None:
        pass


def save_text(path: Path, text: str, header: Header = HEADER) -> None:
    """A state file that holds a text as it is."""
    state_file.save(path, {"text": torch.tensor(list(text.encode()), dtype=torch.uint8)}, header)


def read_text(path: Path) -> str:
    """The text of a state file."""
    return bytes(state_file.load(path)[0]["text"].tolist()).decode()
