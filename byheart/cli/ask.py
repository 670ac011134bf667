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
    memory = open_memory(name, **choices)
    start = time.monotonic()
    answer = terminal.stream_answer(memory.stream(question, stop=stop or (), **decoding), shown=not as_json)
    if as_json:
        seconds = round(time.monotonic() - start, 3)
        asked = {"name": name, "question": question, "answer": answer, "seconds": seconds}
        terminal.show_json({**asked, **memory.explain(answer), "decoding": {**decoding, "stop": stop or []}})
