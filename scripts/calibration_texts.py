"""Chooses the texts that codecs are calibrated on, from the train files of a folder of data sets.

    python scripts/calibration_texts.py DATA/train

writes byheart/data/calibration/*.jsonl, a few dozen records of each kind, whose licences stand in LICENCES there.
What is written by hand or made here, languages.jsonl, code.jsonl and lists.jsonl, is by byheart's authors.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "byheart" / "data" / "calibration"
SOURCES = {
    "squad": 40,
    "novels": 22,
    "newsgroups20": 20,
    "wikitext2": 20,
    "personachat": 14,
    "tinystories": 8,
    "babi": 8,
    "popqa": 6,
}
LONGEST = 1600
SHORTEST = 500
CODE, LISTS = 24, 12
FIRST = "Anna Ben Carla David Elena Farid Grace Hugo Ines Jonas Kira Liam Maya Noah Olga Pavel Quinn Rosa Sami Tara"
LAST = "Adler Brandt Castillo Eriksson Fischer Garcia Haddad Ivanov Jensen Kowalski Larsen Moreau Novak Okafor Petrov"


def main(data: Path) -> None:
    rng = random.Random(17)
    for name, count in SOURCES.items():
        lines = (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        _write(name, _chosen(name, [json.loads(line) for line in lines], count, rng))
    _write("code", [{"id": f"code-{n}", "context": text} for n, text in enumerate(_code(rng))])
    _write("lists", [{"id": f"list-{n}", "context": _list(rng)} for n in range(LISTS)])


def _chosen(name: str, records: list[dict[str, Any]], count: int, rng: random.Random) -> Iterator[Mapping[str, object]]:
    """Records of one kind, no text twice."""
    rng.shuffle(records)
    seen: set[str] = set()
    for record in records:
        turns = (record["meta"] or {}).get("turns") or []
        text = (record["context"] or "\n".join(turn for turn in turns if isinstance(turn, str))).strip()
        start = rng.randrange(len(text) - LONGEST) if name == "novels" and len(text) > LONGEST else 0
        text = text[start : start + LONGEST]
        answers = record["answers"] if name == "squad" else []
        if len(text) < SHORTEST or text in seen or (name == "squad" and not answers):
            continue
        seen.add(text)
        asked = {"task": "qa", "question": record["question"], "answers": answers[:1]} if answers else {}
        yield {"id": record["id"], "context": text, **asked}
        if len(seen) == count:
            return


def _code(rng: random.Random) -> Iterator[str]:
    """Pieces of byheart's own source and of its tests."""
    root = TARGET.parents[2]
    files = sorted([*(root / "byheart").rglob("*.py"), *(root / "tests").rglob("*.py")])
    for file in rng.sample(files, 4 * CODE)[: 2 * CODE]:
        text = file.read_text(encoding="utf-8")
        if len(text) > LONGEST + 400:
            yield text[400 : 400 + LONGEST]


def _list(rng: random.Random) -> str:
    """Names, numbers and dates."""
    rows = [
        f"{rng.choice(FIRST.split())} {rng.choice(LAST.split())}, {rng.randint(1000, 99999)}, "
        f"{rng.randint(1, 28)}/{rng.randint(1, 12)}/{rng.randint(1950, 2025)}, {rng.random() * 1000:.2f}"
        for _ in range(26)
    ]
    return "\n".join(rows)


def _write(name: str, records: Any) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (TARGET / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
