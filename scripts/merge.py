"""Put a trained adapter into its model, and write that as a model of its own.

    python scripts/merge.py trained/adapter adapted [--model smollm2] [--dtype float32]

The first of CCM's two stages (arXiv 2312.03414) adapts the model to the data with the full text in front; the second
freezes it and learns to compress:

    byheart train adapter -o full_text=true --data ... --out trained/adapter
    python scripts/merge.py trained/adapter adapted
    byheart train compressed-kv --model adapted --data ... --out trained/compressed
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch


def main(arguments: Sequence[str] | None = None) -> None:
    """Merge and write."""
    from byheart import load
    from byheart.methods.adapter import Adapter

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="folder that byheart train wrote")
    parser.add_argument("out", type=Path, help="folder of the new model")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args(arguments)
    session = load(args.model, method=args.adapter, dtype=args.dtype)
    method = session.method
    if not isinstance(method, Adapter):
        parser.error(f"'{args.adapter}' is no adapter, but {method.name}")
    with torch.no_grad():
        for path, delta in method.lora.deltas(1).items():
            weight = method.backbone.linear(path).weight
            weight += (delta.up[0].float() @ delta.down[0].float()).to(weight.dtype)
    method.backbone.model.save_pretrained(args.out)
    session.encoder.tokenizer.save_pretrained(args.out)
    print(f"Wrote {args.out}; give it as --model.")


if __name__ == "__main__":
    main()
