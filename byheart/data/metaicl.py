"""MetaICL's own files (Min et al. 2022, arXiv 2110.15943): which are read of its folder, and what their names say.

    data/TASK/TASK_16_SEED_train.jsonl    16 demonstrations, drawn with one of five seeds
    data/TASK/TASK_16_SEED_test.jsonl     what is asked, the same for every seed

What a line holds is in ``layouts.toml``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

UNSEEN = (
    *("quarel", "financial_phrasebank", "openbookqa", "codah", "qasc", "glue-mrpc", "dream", "sick", "commonsense_qa"),
    *("medical_questions_pairs", "quartz-with_knowledge", "poem_sentiment", "quartz-no_knowledge", "glue-wnli"),
    *("climate_fever", "ethos-national_origin", "ethos-race", "ethos-religion", "ai2_arc", "hate_speech18", "glue-rte"),
    *("superglue-cb", "superglue-copa", "tweet_eval-hate", "tweet_eval-stance_atheism", "tweet_eval-stance_feminist"),
)
"""The 26 tasks of its setting ``hr_to_lr`` that no model is trained on."""
ASKED_SEED = 100
_NAME = re.compile(r".+_(?P<shots>\d+)_(?P<seed>\d+)_(?P<part>train|dev|test)\.jsonl(\.gz)?")
_SHOTS = 16


def part_of(file: Path) -> dict[str, Any]:
    """The part and the seed that a file's name says; nothing where it is no name of MetaICL's."""
    found = _NAME.fullmatch(file.name)
    return {"part": found["part"], "seed": int(found["seed"])} if found else {}


def files_within(folder: Path) -> list[Path]:
    """The demonstrations and the questions of tasks that have a folder each in ``folder``."""
    found = {file: _NAME.fullmatch(file.name) for file in sorted(folder.glob("*/*.jsonl*"))}
    names = {file: name for file, name in found.items() if name and int(name["shots"]) == _SHOTS}
    asked = ("test", ASKED_SEED)
    return [
        file for file, name in names.items() if name["part"] == "train" or (name["part"], int(name["seed"])) == asked
    ]
