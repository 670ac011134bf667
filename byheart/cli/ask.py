"""``byheart ask``: one question, its answer streamed; the memory stays as it was."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from byheart.cli import options, terminal
from byheart.cli.opening import open_memory

Question = Annotated[str, typer.Argument(help="What to ask.", show_default=False)]


@options.takes(options.DECODING, options.OPENING)
def ask(
    name: options.Name, question: Question, stop: options.Stop = None, as_json: options.AsJSON = False, **choices: Any
) -> None:
    """Ask a memory a question."""
    decoding = options.take_decoding(choices)
    _, session = open_memory(name, **choices)
    start = time.monotonic()
    answer = terminal.stream_answer(session.stream(question, stop=stop or (), **decoding), shown=not as_json)
    if as_json:
        header, seconds = session.header, round(time.monotonic() - start, 3)
        tokens = len(session.encoder.continuation(answer))
        asked = {"name": name, "question": question, "answer": answer, "tokens": tokens, "seconds": seconds}
        memory = {"model": header.model, "method": header.method, "options": header.options, "dtype": header.dtype}
        terminal.show_json({**asked, **memory, "decoding": {**decoding, "stop": stop or []}})
