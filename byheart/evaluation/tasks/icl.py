"""Learning a classification from demonstrations that are written one by one (CCM's setting of MetaICL, 2312.03414).

Any records with ``dataset``, ``context``, ``choices`` and ``answers``; several queries share a draw of demonstrations,
so that each is written once for all of them. ``published`` takes MetaICL's own files as CCM does (section 4.1): its 26
unseen tasks, demonstrations as its seed drew them, and all as tokens.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, ClassVar

from byheart.data.metaicl import ASKED_SEED, UNSEEN
from byheart.data.records import Fields, required
from byheart.errors import InputError
from byheart.evaluation.metrics import summary as summary_scores
from byheart.evaluation.results import Result, means
from byheart.evaluation.task import Answer, Item, Part, Question, Task, Tokens, answers_of
from byheart.protocol.grouping import group
from byheart.text.encoder import ChatEncoder

# Left out of the published mean, because it varies too much.
_LEFT_OUT = "glue-mrpc"
# Its labels are compared over their prior in the published mean.
_OVER_PRIOR = "poem_sentiment"
# Tokens of an example, and of all that a model reads; demonstrations of another seed fill up where some are left out.
_LONGEST, MOST_TOKENS, _FILLING_SEED = 256, 1024, 13


class ICL(Task):
    """Accuracy after so many demonstrations of a classification were written, by data set and in the mean (CCM).

    The label of the least loss per token answers. Without ``published``, poem_sentiment is not scored over its prior,
    and a data set with a single label is left out. The published evaluation drops each data set's last example by an
    error, which is not repeated here.

    Args:
        demonstrations: how many were written when queries are asked.
        queries: that share one draw of demonstrations; more are quicker, fewer average over more draws.
        published: take MetaICL's own files, ``TASK_16_100_test.jsonl`` and ``_train.jsonl`` in a folder of each task.
        rouge: also generate an answer, up to the end of its line: ROUGE-L against the right one, with a stemmer, and
            how many words it has (CCM's ``--eval_rouge``). Needs the package rouge_score.
    """

    name = "icl"
    stop = ("\n", "Input:")
    higher_is_better: ClassVar = {"answer_words": None}
    unbounded = ("answer_words",)
    optional_metrics: ClassVar = {"rouge_l": "rouge", "answer_words": "rouge"}
    encoder: ChatEncoder

    def __init__(
        self,
        *,
        demonstrations: Sequence[int] = (0, 2, 4, 8, 16),
        queries: int = 16,
        published: bool = False,
        rouge: bool = False,
    ) -> None:
        if not demonstrations or min(demonstrations) < 0 or queries < 1:
            raise ValueError(
                f"demonstrations must be numbers from 0 on and queries 1 or more; they are {demonstrations}, {queries}"
            )
        self.demonstrations, self.queries, self.published, self.rouge = demonstrations, queries, published, rouge
        self.asks = "words" if rouge else "choices"

    def split(self, encoder: ChatEncoder) -> Sequence[Task]:
        """Itself, with an encoder."""
        task = copy.copy(self)
        task.encoder = encoder
        return (task,)

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """Demonstrations with queries about them, one of each data set in turn; each record is a query once."""
        if self.rouge:
            # A package that is not there is named before anything is generated.
            summary_scores.rouge("", "")
        draw = random.Random(seed)
        if self.published:
            found = _by_task(records)
            kinds = [list(self._asked(name, found[name], draw)) for name in sorted(found)]
        else:
            drawn = _grouped(records)
            kinds = [list(self._drawn(name, drawn[name], draw)) for name in sorted(drawn)]
        for draws in zip_longest(*kinds):
            yield from (item for item in draws if item is not None)

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """Whether the likeliest label, by its loss per token or over its prior, is the right one."""
        label = question.choices[answer.best(each_token=not question.prior)]
        said = summary_scores.said_as(answer.text, question.answers[0]) if self.rouge else {}
        return {"accuracy": float(label == question.answers[0]), **said}

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """Means over data sets, in which each counts once."""
        kept = [row for row in rows if not str(row.conditions.get("set")).startswith(_LEFT_OUT)]
        return [mean for metric in ("accuracy", "rouge_l") for mean in means(kept, over="set", metric=metric)]

    def _drawn(self, name: str, pairs: list[tuple[str, str]], draw: random.Random) -> Iterator[Item]:
        labels = tuple(sorted({label for _, label in pairs}))
        if len(labels) < 2:
            return
        draw.shuffle(pairs)
        for first in range(0, len(pairs), self.queries):
            asked = pairs[first : first + self.queries]
            rest = pairs[:first] + pairs[first + self.queries :]
            shown = draw.sample(rest, min(max(self.demonstrations), len(rest)))
            questions = [
                Question(
                    f"{text}\n",
                    (label,),
                    labels,
                    after=k,
                    conditions={"demonstrations": k, "set": name},
                    use_chat_template=False,
                )
                for k in sorted(set(self.demonstrations))
                if k <= len(shown)
                for text, label in asked
            ]
            if questions:
                yield Item(
                    tuple(f"{text}\n{label}\n" for text, label in shown), tuple(questions), use_chat_template=False
                )

    def _asked(self, name: str, records: Sequence[Fields], draw: random.Random) -> Iterator[Item]:
        """The queries of one of MetaICL's tasks, after the same demonstrations; what is too long is left out."""
        encode = _encoding(self.encoder)
        fitting = [record for record in records if len(_demonstration(encode, record)) <= _LONGEST]
        shown = [
            _demonstration(encode, record)
            for seed in (ASKED_SEED, _FILLING_SEED)
            for record in fitting
            if (record["part"], record["seed"]) == ("train", seed)
        ][: max(self.demonstrations)]
        asked = [record for record in fitting if (record["part"], record["seed"]) == ("test", ASKED_SEED)]
        draw.shuffle(asked)
        # Texts begin with what the tokenizer puts before every text.
        texts = [tuple(self.encoder.start) + shown[0], *shown[1:]] if shown else []
        for first in range(0, len(asked), self.queries):
            questions = [
                self._question(name, record, k, shown, encode)
                for k in sorted(set(self.demonstrations))
                if k <= len(shown)
                for record in asked[first : first + self.queries]
            ]
            if questions:
                yield Item(tuple(texts), tuple(questions), use_chat_template=False)

    def _question(
        self, name: str, record: Fields, k: int, shown: Sequence[Tokens], encode: Callable[[str], Tokens]
    ) -> Question:
        """A query after k demonstrations, or as many of these as fit before it."""
        options = tuple(dict.fromkeys(option.strip() for option in record["options"]))
        prompt, choices = _prompt(encode, record), tuple(encode(option) for option in options)
        room = MOST_TOKENS - len(prompt) - max(map(len, choices))
        after = next((n for n in range(k) if sum(map(len, shown[: n + 1])) > room), k)
        return Question(
            str(record["input"]),
            (str(record["output"]).strip(),),
            options,
            after=after,
            conditions={"demonstrations": k, "set": name},
            use_chat_template=False,
            tokens=prompt if after else tuple(self.encoder.start) + prompt,
            choice_tokens=choices,
            prior=encode("Output:") if name.startswith(_OVER_PRIOR) else (),
        )


def _by_task(records: Sequence[Fields]) -> dict[str, list[Fields]]:
    """The records of MetaICL's unseen tasks. Raises InputError where they lack a file that is needed."""
    own = [record for record in records if "part" in record and {"task", "input", "options"} <= record.keys()]
    tasks = group(own, lambda record: str(record["dataset"]))
    found: dict[str, list[Fields]] = {name: list(tasks[name]) for name in UNSEEN if name in tasks}
    if not found:
        raise InputError(
            "published needs MetaICL's files of its 26 unseen tasks, such as "
            f"'data/{_OVER_PRIOR}/{_OVER_PRIOR}_16_100_test.jsonl' and '..._16_100_train.jsonl'; give the "
            f"folder 'data'. These {len(records)} records are of {', '.join(sorted(tasks)) or 'no file of that name'}."
        )
    for name, rows in found.items():
        there = {(record["part"], record["seed"]) for record in rows}
        for part in ("train", "test"):
            if (part, ASKED_SEED) not in there:
                raise InputError(
                    f"'{name}_16_{ASKED_SEED}_{part}.jsonl' is not there, which published needs of {name}."
                )
    return found


def _encoding(encoder: ChatEncoder) -> Callable[[str], Tokens]:
    """The tokens of a part of an example, which begins as a word does after a space.

    Parts are put together as tokens; a tokenizer that takes a text's first word for the first of a sentence is given
    the space.
    """
    own = tuple(encoder.continuation("word").tolist()) == tuple(encoder.continuation("word word").tolist())[1:]
    return lambda text: tuple(encoder.continuation(text.strip() if own else f" {text.strip()}").tolist())


def _prompt(encode: Callable[[str], Tokens], record: Mapping[str, Any]) -> Tokens:
    return encode("Input:") + encode(str(record["input"])) + encode("Output:")


def _demonstration(encode: Callable[[str], Tokens], record: Mapping[str, Any]) -> Tokens:
    return _prompt(encode, record) + encode(str(record["output"]))


def _grouped(records: Sequence[Fields]) -> dict[str, list[tuple[str, str]]]:
    """Inputs and labels by data set, in the order of the records."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for number, record in enumerate(records, start=1):
        name = str(required(record, "dataset", number))
        text = str(required(record, "context", number)).strip()
        groups.setdefault(name, []).append((text, answers_of(record, number)[0]))
    return groups
