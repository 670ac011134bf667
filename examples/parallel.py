"""Check that CCM computes in parallel what it computes segment by segment (arXiv 2312.03414, section 3.3).

    python examples/parallel.py examples/warsaw.txt --model smollm2 -o merge=mean

A text is written into `compressed-kv` twice: segment by segment, as a session does, and all segments in one pass, as
training does. Printed is how far keys and values are apart, and what the model says next; other options and folders of
trained or imported methods are checked the same way.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import byheart
from byheart.cli.options import method_options
from byheart.methods.compressed_kv import CompressedKV
from byheart.protocol.state import State

_TOLERANCE = 1e-3


@torch.no_grad()
def both(method: CompressedKV, tokens: torch.Tensor) -> tuple[State, State]:
    """The state after a text (1, T), of whole segments: one after another, and all at once."""
    segments = torch.stack(list(method.pieces(tokens)), dim=1)
    together, _ = method.write_together(segments, torch.ones_like(segments, dtype=torch.bool))
    return method.write(method.init(), tokens), together


def main(arguments: list[str] | None = None) -> float:
    """Print both, and give the largest difference of a key or a value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--method", default="compressed-kv", help="or the folder of a trained or an imported one")
    parser.add_argument("-o", "--option", action="append", metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    options = method_options(given.option)
    session = byheart.load(given.model, method=given.method, dtype="float32", **options)
    if not isinstance(session.method, CompressedKV):
        parser.error(f"{session.method.name} does not compute in parallel; take compressed-kv or a folder of one.")
    tokens = session.document(given.text.read_text(encoding="utf-8"))
    length = session.method.segment_tokens or tokens.shape[1]
    if tokens.shape[1] < length:
        parser.error(f"The text has {tokens.shape[1]} tokens, less than one segment of {length}; give a longer one.")
    states = both(session.method, tokens[:, : tokens.shape[1] // length * length])
    apart = max(float((states[0][name].float() - states[1][name].float()).abs().max()) for name in states[0])
    for name, state in zip(("one after another", "all at once"), states, strict=True):
        prompt = session.prompt("What is this about?")[None]
        with torch.no_grad(), session.backbone.reading([session.method.read(state)]) as cache:
            chosen = session.backbone.logits(session.backbone.hidden(prompt, cache=cache)[0, -1]).argmax()
        print(f"{name}: {int(state['segments'])} segments, next {session.encoder.decode([int(chosen)])!r}")
    print(f"largest difference of a key or a value: {apart:.1e}")
    return apart


if __name__ == "__main__":
    raise SystemExit(main() > _TOLERANCE)
