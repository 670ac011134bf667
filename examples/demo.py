"""Write one article into several memories, ask each about it, then write and ask from separate processes.

Run it with ``make demo``, or ``python examples/demo.py``. It takes about a minute on two CPU cores.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

import byheart
from byheart.cli import threads

ARTICLE = Path(__file__).with_name("warsaw.txt")
METHODS = ("nothing", "full", "compact", "retrieval", "last-ffn")
QUESTIONS = (
    "Which king moved his court from Kraków to Warsaw?",
    "When was the oldest armed seal of Warsaw made?",
    "In which year was the first historical reference to Warsaw?",
    "What was the campaign to rebuild Warsaw after the war called?",
    "What animal or creature appears on the coat of arms of Warsaw?",
)
ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Result:
    """What one memory answered, what it keeps, and how long it took."""

    method: str
    answers: list[str]
    bytes: int
    writing: float
    answering: float


def compare(console: Console, backbone: byheart.Backbone, text: str, name: str) -> Result:
    """Write the article into one memory and ask it all questions."""
    session = byheart.load(backbone, method=name)
    with console.status(f"{name}: writing the article"):
        start = time.monotonic()
        session.write(text)
        writing = time.monotonic() - start
    answers = []
    start = time.monotonic()
    for question in QUESTIONS:
        with console.status(f"{name}: {question}"):
            answer = session.ask(question, max_tokens=ANSWER_TOKENS)
        answers.append(answer if answer.endswith((".", "!", "?")) else f"{answer}…")
    result = Result(name, answers, session.bytes, writing, (time.monotonic() - start) / len(QUESTIONS))
    console.print(f"  {name}: written in {writing:.1f} s, {len(QUESTIONS)} questions answered.", highlight=False)
    return result


def side_by_side(results: Sequence[Result]) -> Table:
    """A row a question, a column a memory, and under them what each costs."""
    table = Table(box=box.HORIZONTALS, show_lines=True, show_footer=True, pad_edge=False)
    table.add_column("question", "keeps\nto write\nto answer", ratio=3)
    for result in results:
        cost = f"{decimal(result.bytes)}\n{result.writing:.1f} s\n{result.answering:.1f} s"
        table.add_column(result.method, cost, ratio=4)
    for index, question in enumerate(QUESTIONS):
        table.add_row(question, *(result.answers[index] for result in results))
    return table


def show_that_it_lasts(console: Console, model: str, article: Path) -> None:
    """One command writes, two others ask: nothing is shared but a file."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "BYHEART_HOME": home}
        for command in (
            ["write", "warsaw", os.path.relpath(article), "--model", model],
            ["ask", "warsaw", QUESTIONS[0], "--max-tokens", str(ANSWER_TOKENS)],
            ["ask", "warsaw", QUESTIONS[3], "--max-tokens", str(ANSWER_TOKENS)],
        ):
            console.print(f"$ byheart {shlex.join(command)}", style="bold", highlight=False, soft_wrap=True)
            with console.status("a process of its own"):
                process = [sys.executable, "-m", "byheart", *command]
                answer = subprocess.run(
                    process, check=True, env=environment, stdout=subprocess.PIPE, encoding="utf-8"
                ).stdout
            console.print(answer.rstrip(), highlight=False, markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="alias, hub id, folder or .gguf file")
    parser.add_argument("--article", type=Path, default=ARTICLE, help="a UTF-8 text file")
    chosen = parser.parse_args(arguments)
    threads.prepare(os.environ)
    # PyTorch is imported from here on, when the threads are chosen.
    from byheart.model.loading import silence

    console, text = Console(), chosen.article.read_text(encoding="utf-8")
    silence()
    console.print(f"One article ({len(text.split()):,} words), one model ({chosen.model}), {len(METHODS)} memories.")
    console.print("The five questions were chosen among those this small model can answer with the text.")
    with console.status(f"opening {chosen.model}"):
        backbone = byheart.Backbone.open(chosen.model)
    results = [compare(console, backbone, text, name) for name in METHODS]
    console.print(side_by_side(results))
    sizes = {result.method: result.bytes for result in results}
    console.print(
        f"compact keeps {decimal(sizes['compact'])}: the full text's keys and values, in "
        f"{sizes['full'] / sizes['compact']:.0f} times fewer bytes.",
        highlight=False,
    )
    console.print(
        f"retrieval keeps the words themselves, {decimal(sizes['retrieval'])}, and reads those that bear on a question "
        "again each time.",
        highlight=False,
    )
    console.print("A memory is a file: what one process wrote, another one knows.\n")
    show_that_it_lasts(console, chosen.model, chosen.article)


if __name__ == "__main__":
    main()
