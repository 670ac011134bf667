"""Texts of kinds that no codec was calibrated on: source code, lists of names and numbers, messages in other languages.

    python benchmarks/kinds.py FOLDER       writes code.jsonl, lists.jsonl and messages.jsonl

Code is the standard library of the Python that runs this, messages are those of the programs that this machine has, so
another machine's differ. Lists are made up, and are the same everywhere. ``python benchmarks/results.py --data FOLDER
--only compact-kinds`` then measures with them.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

CODE_FILES, LISTS, LINES = 48, 24, 400
LOCALES = Path("/usr/share")
LANGUAGES = ("de", "fr", "es", "it", "nl", "pt")
_FIRST = (
    "Anna Boris Chen Dilara Emil Farah Goran Hana Idris Jana Kofi Lena Milan Nadia Omar Petra Quinn Rosa Samir Tara"
)
_LAST = (
    "Almeida Bauer Castro Dvorak Eriksen Fofana Garcia Haddad Ivanov Jensen Kaya Lindqvist Moreau Novak Okafor Patel"
)


def code() -> Iterator[str]:
    """Modules of the standard library, the longest first ones left out."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    modules = sorted(path for path in folder.glob("*.py") if 6_000 <= path.stat().st_size <= 60_000)
    for path in modules[:CODE_FILES]:
        yield path.read_text(encoding="utf-8")


def lists(seed: int = 0) -> Iterator[str]:
    """Made-up people with an age, a telephone number, a price or a date each."""
    draw = random.Random(seed)
    for _ in range(LISTS):
        yield "\n".join(_line(draw) for _ in range(LINES))


def _line(draw: random.Random) -> str:
    name = f"{draw.choice(_FIRST.split())} {draw.choice(_LAST.split())}"
    facts = (
        f"born {draw.randint(1, 28)}.{draw.randint(1, 12)}.{draw.randint(1930, 2010)}",
        f"tel. 0{draw.randint(100, 999)} {draw.randint(10**5, 10**6 - 1)}",
        f"owes {draw.randint(1, 9999)}.{draw.randint(0, 99):02d} EUR",
        f"seat {draw.randint(1, 60)}{draw.choice('ABCDEF')}, gate {draw.randint(1, 99)}",
    )
    return f"{name}, {draw.choice(facts)}"


def messages(folder: Path = LOCALES) -> Iterator[str]:
    """What this machine's programs say in other languages; nothing where none has a translation."""
    for language in LANGUAGES:
        for path in sorted(folder.glob(f"**/{language}/LC_MESSAGES/*.mo")):
            try:
                yield "\n".join(_translations(path.read_bytes()))
            except (UnicodeDecodeError, struct.error):
                continue


def _translations(catalog: bytes) -> Iterator[str]:
    """The translated messages of a compiled GNU catalogue, but for its head."""
    _, _, count, _, table = struct.unpack_from("<5I", catalog)
    for length, start in struct.iter_unpack("<2I", catalog[table + 8 : table + 8 * count]):
        yield catalog[start : start + length].decode("utf-8").replace("\0", "\n")


def write(folder: Path) -> dict[str, int]:
    """Write all that there is; returns how many texts each file has."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, texts in (("code", code()), ("lists", lists()), ("messages", messages())):
        rows = [json.dumps({"task": "lm", "context": text}) for text in texts if len(text) > 2_000]
        (folder / f"{name}.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        counts[name] = len(rows)
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files and say what they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, count in write(parser.parse_args(arguments).folder).items():
        print(f"{name}: {count} texts")


if __name__ == "__main__":
    main()
