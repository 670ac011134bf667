"""A program that renders a chat template, which somebody else wrote, within bounds; ``chat_template`` runs it.

It reads one JSON object from standard input and writes one to standard output: ``rendered``, a list, or ``error``. It
renders as ``apply_chat_template`` does, and imports neither byheart nor PyTorch.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

SECONDS, MEMORY, LONGEST = 2, 1 << 29, 1 << 20


def bound() -> None:
    """Let this process take no more than SECONDS of computing and MEMORY bytes beside what its imports took."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = math.ceil(used.ru_utime + used.ru_stime) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        memory = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def render(template: str, tokens: dict[str, Any], conversations: list[tuple[list[dict[str, str]], bool]]) -> list[str]:
    """Each conversation as the template writes it. Raises ValueError for a long text, and what a template raises."""
    texts = [
        render_jinja_template([messages], chat_template=template, add_generation_prompt=prompted, **tokens)[0][0]
        for messages, prompted in conversations
    ]
    if max(map(len, texts)) > LONGEST:
        raise ValueError(f"it writes more than {LONGEST:,} characters around a short message")
    return texts


def main() -> None:
    asked = json.load(sys.stdin)
    bound()
    try:
        answer: dict[str, Any] = {"rendered": render(**asked)}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:LONGEST]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
