"""How fast last-ffn should be tuned: a few settings on training questions whose text was made to contradict the model.

    python scripts/rate_study.py --train train/nq.jsonl
    python scripts/rate_study.py --train train/nq.jsonl --limit 36 --skip 24     on other ones, to confirm a choice

In each text the right answer is replaced by that of another question which looks alike (as in NQ-Swap, Longpre et al.
2021, arXiv 2109.05052). FastMem's layout: the text is tuned on and stands in the question too. Each question is asked
twice: plainly, where an answer may fail to have its format; and primed with the words of that format, where the loss of
the replaced answer is measured as well. An interrupted run resumes. The rows are kept in
``benchmarks/results/rate_study.json``; it measures nothing on evaluation data.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from byheart.data.records import Fields, rows
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.task import Answer, Item, Part, Question
from byheart.evaluation.tasks.faithful import PREFIX, Faithful

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (
    *("learning_rate=1e-5", "learning_rate=1e-4", "learning_rate=3e-4", "learning_rate=6e-4"),
    *("learning_rate=1e-3", "learning_rate=3e-3", "learning_rate=1e-3;kl=1"),
)
SWAPS, FEWEST_WORDS, MOST_WORDS, LONGEST_ANSWER = 60, 25, 70, 40


class BothWays(Faithful):
    """Each question of ``faithful`` plainly, and primed with the loss of its answer."""

    max_tokens = 20
    stop = ("\n",)
    higher_is_better: ClassVar = {"failures": False, "gold_loss": False}

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per record, with its two questions."""
        for item in Faithful.items(self, records, seed):
            (question,) = item.questions
            plain = replace(question, conditions={"primed": False})
            choices = (f" {question.answers[0]}",)
            told: dict[str, Any] = {"answer_prefix": PREFIX, "choices": choices, "max_tokens": 10}
            yield Item(item.texts, (plain, replace(question, conditions={"primed": True}, **told)))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """Failures where an answer can fail, and the loss where it was measured."""
        found = {**Faithful.score(self, question, answer)}
        if answer.losses:
            del found["failures"]
            found["gold_loss"] = Part(answer.losses[0], answer.tokens[0])
        return found


def swap(records: Sequence[Fields], count: int) -> list[dict[str, Any]]:
    """Records whose short texts have another question's answer in place of their own."""
    usable = [
        record
        for record in records
        if record.get("answers")
        and record["answers"][0] in record["context"]
        and 2 < len(record["answers"][0]) < LONGEST_ANSWER
    ]
    short = [record for record in usable if FEWEST_WORDS < len(record["context"].split()) < MOST_WORDS]
    generator, swapped = random.Random(0), []
    generator.shuffle(short)
    for record in short[:count]:
        own, context = record["answers"], record["context"]
        answers = [other["answers"][0] for other in usable]
        alike = [each for each in answers if _looks(each) == _looks(own[0]) and each.lower() not in context.lower()]
        if not alike:
            continue
        chosen = generator.choice(alike)
        for answer in sorted(own, key=len, reverse=True):
            context = context.replace(answer, chosen)
        swapped.append({"context": context, "question": record["question"], "answers": [chosen], "task": "conflict"})
    return swapped


def _looks(answer: str) -> tuple[int, bool, bool]:
    """Its words, up to four, and whether it has a digit and begins with a capital."""
    return min(len(answer.split()), 4), bool(re.search(r"\d", answer)), answer[:1].isupper()


def main(arguments: Sequence[str] | None = None) -> None:
    """Swap, measure, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="questions with their texts, none of which is evaluated on")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="options of last-ffn")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "rate-study")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "rate_study.json")
    args = parser.parse_args(arguments)
    args.runs.mkdir(parents=True, exist_ok=True)
    data = args.runs / "swap.jsonl"
    data.write_text("".join(f"{json.dumps(each)}\n" for each in swap(list(rows(args.train)), SWAPS)), encoding="utf-8")
    evaluate(
        BothWays(context=True),
        str(data),
        ["nothing", *(f"last-ffn:keep_text=false;{each}" for each in args.settings)],
        model=args.model,
        dtype=args.dtype,
        limit=args.limit,
        skip=args.skip,
        batch=args.batch,
        against="nothing",
        control=["other"],
        out=args.runs / "out",
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.runs / "out" / "rows.json", args.out)


if __name__ == "__main__":
    main()
