"""The commands that open a model: write, ask, chat."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from byheart.cli import options, terminal
from byheart.errors import InputError

if TYPE_CHECKING:
    from byheart.protocol.state import Written
    from byheart.session.session import Session
    from byheart.store.folder import Store

_STDIN = "-"
Files = Annotated[
    list[str] | None,
    typer.Argument(help="UTF-8 text files, in order; '-' or none is standard input.", show_default=False),
]
Question = Annotated[str, typer.Argument(help="What to ask.", show_default=False)]


def write(
    name: options.Name,
    files: Files = None,
    model: options.Model = None,
    method: options.MethodName = None,
    option: options.Options = None,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    home: options.Home = None,
    as_json: options.AsJSON = False,
) -> None:
    """Write text into a memory; a new name makes a new one."""
    texts = [(source, _text(source)) for source in files or [_STDIN]]
    chosen = options.method_options(option)
    store, session = _opened(name, home, new=True, model=model, method=method, dtype=dtype, device=device, **chosen)
    for source, text in texts:
        start = time.monotonic()
        shown = "standard input" if source == _STDIN else Path(source).name
        with terminal.progressing(f"writing {shown}") as progress, store.updating(name, session):
            entry = session.write(text, source=shown, progress=progress)
        _acknowledge(store, name, entry, time.monotonic() - start, as_json=as_json)


def ask(
    name: options.Name,
    question: Question,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    contrast: options.Contrast = None,
    cad: options.ContextAware = None,
    dola: options.DoLa = None,
    model: options.Model = None,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    home: options.Home = None,
    as_json: options.AsJSON = False,
) -> None:
    """Ask a memory a question."""
    how = _decoding(max_tokens, temperature, top_p, top_k, seed, contrast, cad, dola)
    _, session = _opened(name, home, model=model, dtype=dtype, device=device)
    start = time.monotonic()
    answer = terminal.streamed(session.stream(question, stop=stop or (), **how), shown=not as_json)
    if as_json:
        spent = round(time.monotonic() - start, 3)
        tokens = len(session.encoder.continuation(answer))
        asked = {"name": name, "question": question, "answer": answer, "tokens": tokens}
        terminal.show_json({**asked, "seconds": spent, **_made(session), "decoding": {**how, "stop": stop or []}})


def chat(
    name: options.Name,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    contrast: options.Contrast = None,
    cad: options.ContextAware = None,
    dola: options.DoLa = None,
    model: options.Model = None,
    method: options.MethodName = None,
    option: options.Options = None,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    home: options.Home = None,
) -> None:
    """Talk with a memory that keeps every turn; a new name makes a new one."""
    how = _decoding(max_tokens, temperature, top_p, top_k, seed, contrast, cad, dola)
    chosen = options.method_options(option)
    store, session = _opened(name, home, new=True, model=model, method=method, dtype=dtype, device=device, **chosen)
    terminal.note("Ctrl-C ends an answer; Ctrl-D or /exit leaves.")
    for question in terminal.lines("> "):
        answer = terminal.streamed(session.reply(question, stop=stop or (), **how), endable=True)
        with store.updating(name, session):
            session.write_turn(question, answer)
        tokens, size = session.header.tokens, terminal.size(store.entry(name).bytes)
        terminal.note(f"{tokens:,} tokens of conversation in {size}")


def _opened(name: str, home: Path | None, **choices: Any) -> tuple[Store, Session]:
    """The store and a session for a name, with what transformers would say on the way left out."""
    with terminal.progressing(f"opening {name}"):
        from byheart.model.loading import silence
        from byheart.store.folder import Store

        silence()
        store = Store(home)
        return store, store.open(name, **choices)


def _text(source: str) -> str:
    """The text of a file or of standard input. Raises InputError."""
    shown = "Standard input" if source == _STDIN else f"'{source}'"
    try:
        if source == _STDIN and sys.stdin.isatty():
            terminal.note("Type or paste the text, then press Ctrl-D.")
        raw = sys.stdin.buffer.read() if source == _STDIN else Path(source).expanduser().read_bytes()
        text = raw.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown} is not UTF-8 text: byte {error.start} is {raw[error.start]:#04x}. Convert it, as with iconv."
        ) from error
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {error.strerror}.") from error
    if not text.strip():
        raise InputError(f"{shown} holds no text to write.")
    return text


def _acknowledge(store: Store, name: str, entry: Written, seconds: float, *, as_json: bool) -> None:
    """Say what was written, once it is on disk."""
    kept = store.entry(name)
    total = kept.header.tokens if kept.header else 0
    if as_json:
        written = {"name": name, **vars(entry), "seconds": round(seconds, 3)}
        terminal.show_json({**written, "total_tokens": total, "bytes": kept.bytes, "path": str(kept.path)})
        return
    print(
        f"Wrote {entry.source}: {entry.tokens:,} tokens in {seconds:.1f} s. "
        f"'{name}' now keeps {total:,} tokens in {terminal.size(kept.bytes)}.",
        flush=True,
    )


def _decoding(
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int | None,
    contrast: float | None,
    cad: float | None,
    dola: str | None,
) -> dict[str, Any]:
    """The options of ``decoding.Decoding``."""
    sampled = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    return {**sampled, "contrast": contrast, "context_aware": cad, "dola": options.layers(dola)}


def _made(session: Session) -> dict[str, Any]:
    header = session.header
    return {"model": header.model, "method": header.method, "options": header.options, "dtype": header.dtype}
