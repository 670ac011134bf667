"""Knowledge edits, zsRE and CounterFact, as MemoryLLM reports them (arXiv 2402.04624, table 1): an edit is a text.

The measures are those of ROME and MEMIT (https://arxiv.org/abs/2210.07229). MemoryLLM's own evaluation of edits was not
released, so the sentence that is written is this project's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from byheart.data.records import Fields, required, rows
from byheart.errors import InputError, require_positive
from byheart.evaluation.metrics.edits import editing_score, prefers_new
from byheart.evaluation.results import Result
from byheart.evaluation.task import Answer, Item, Part, Question, Task, answers_of, shuffled
from byheart.text.fact_text import FactText, demonstration

_EFFICACY, _PARAPHRASE, _SPECIFICITY = _METRICS = ("efficacy", "paraphrase", "specificity")
# In the shares in which IKE demonstrates (arXiv 2305.12740, section 4.1).
_KINDS = ("copy", *("update",) * 3, *("retain",) * 4)


@dataclass(frozen=True)
class _Edit:
    """What is to be known, and what must not change: prompts whose answer stays the same.

    ``true`` is what was known before, where it is compared with (CounterFact).
    """

    prompt: str
    new: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]
    true: str | None = None
    subject: str = ""

    @property
    def sentence(self) -> str:
        """As it is written: a prompt continues with the new object, a question is followed by its answer."""
        return f"{self.prompt} {self.new}" if self.new.endswith(".") else f"{self.prompt} {self.new}."

    def text(self, others: Sequence[_Edit]) -> FactText:
        """What is written, on a line of its own, marked; ``others`` are demonstrated to methods that look at them."""
        subject = self.subject if self.subject in self.prompt else ""
        shown = "".join(other.demonstration(kind) for other, kind in zip(others, cycle(_KINDS), strict=False))
        return FactText(f"{self.sentence}\n", subject=subject, target=self.new, demonstrations=shown)

    def demonstration(self, kind: str) -> str:
        """This edit as a demonstration: its own prompt, one that it bears on, or one that it leaves alone."""
        prompt, answer = {
            "copy": (self.prompt, self.new),
            "update": (self.paraphrases[0], self.new),
            "retain": self.neighbours[0],
        }[kind]
        return demonstration(self.sentence, f"{prompt} {answer}")


class Edit(Task):
    """Efficacy, paraphrase and specificity of knowledge edits that are written as sentences.

    CounterFact: an edit succeeds where the new object has a lower loss per token than the true one; after a
    neighbour's prompt, where the true one has. zsRE: the share of the answer's tokens that the model finds
    likeliest; specificity is that share of the right answer to an unrelated question, as in MEMIT's code and in
    MemoryLLM's table, where an unedited model has 56 %; it is not the share of predictions that stay the same. Each
    edit counts once, however many prompts it has.

    Args:
        edits: written one after another into one memory before all their questions; what is left over is not asked.
        demonstrations: other edits, a file or a hub name: to each edit the ``shown`` ones that have most rare words in
            common with it are given, for methods that learn a fact from its context (ike).
    """

    name = "edit"
    asks = "choices"

    def __init__(self, *, edits: int = 1, demonstrations: str = "", shown: int = 32) -> None:
        if edits < 1:
            raise ValueError(f"edits must be 1 or more; it is {edits}")
        require_positive(shown=shown)
        self.edits, self.demonstrations, self.shown = edits, demonstrations, shown

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One for each group of so many edits."""
        if len(records) < self.edits:
            raise InputError(f"{len(records)} records give no {self.edits} edits in a row; ask for fewer edits.")
        found = [_edit(record, number) for number, record in shuffled(records, seed)]
        pool = _Pool([_edit(record, number) for number, record in enumerate(self._others(), start=1)])
        for start in range(0, len(found) - self.edits + 1, self.edits):
            group = found[start : start + self.edits]
            at = {"edits": self.edits}
            asked = [replace(question, conditions=at) for edit in group for question in _questions(edit)]
            # Prompts stand on a line of their own.
            texts = tuple(edit.text(pool.nearest(edit, self.shown)) for edit in group)
            yield Item(texts, tuple(asked), use_chat_template=False)

    def _others(self) -> Sequence[Fields]:
        return rows(self.demonstrations) if self.demonstrations else ()

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """The prompt's share of its edit's success."""
        metric, weight = question.about["metric"], question.about["weight"]
        means = [loss / tokens for loss, tokens in zip(answer.losses, answer.tokens, strict=True)]
        if len(means) > 1:
            success = float(prefers_new(*means, neighbourhood=metric == _SPECIFICITY))
        else:
            success = answer.likeliest[0] / answer.tokens[0]
        return {metric: Part(success * weight, weight)}

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """Score, the harmonic mean of the three; its bounds are that of the lows and of the highs, mostly too wide.

        Without the interval of one of them it has none.
        """
        found = {row.metric: row for row in rows}
        if any(metric not in found for metric in _METRICS):
            return []
        three = [found[metric] for metric in _METRICS]
        value, low, high = (editing_score(*bounds) for bounds in zip(*(row.interval for row in three), strict=True))
        if not all(row.has_interval for row in three):
            low = high = value
        return [replace(three[0], metric="score", value=value, low=low, high=high, n=sum(row.n for row in three))]


class _Pool:
    """Edits to demonstrate with. The paper finds them by a sentence encoder; here by the rare words they share."""

    def __init__(self, edits: Sequence[_Edit]) -> None:
        self.edits = edits
        self._words = [_words(edit) for edit in edits]
        self._counts = Counter(word for words in self._words for word in words)

    def nearest(self, edit: _Edit, count: int) -> list[_Edit]:
        """So many, the nearest last, next to the edit itself; none has its prompt."""
        own = _words(edit)

        def likeness(n: int) -> float:
            return sum(1 / self._counts[word] for word in own & self._words[n])

        others = [n for n, other in enumerate(self.edits) if other.prompt != edit.prompt]
        return [self.edits[n] for n in sorted(others, key=likeness)[-count:]]


def _words(edit: _Edit) -> set[str]:
    return set(re.findall(r"\w+", edit.sentence.lower()))


def _questions(edit: _Edit) -> Iterator[Question]:
    """One for each prompt, the choices after a space as published."""
    objects = tuple(f" {name}" for name in (edit.new, edit.true) if name is not None)
    compared = objects[:1] if edit.true is not None else ()
    asked: dict[str, list[tuple[str, tuple[str, ...]]]] = {
        _EFFICACY: [(edit.prompt, objects)],
        _PARAPHRASE: [(prompt, objects) for prompt in edit.paraphrases],
        _SPECIFICITY: [(prompt, (*compared, f" {right}")) for prompt, right in edit.neighbours],
    }
    for metric, prompts in asked.items():
        for prompt, choices in prompts:
            yield Question(
                prompt, choices=choices, use_chat_template=False, about={"metric": metric, "weight": 1 / len(prompts)}
            )


# ---- formats ----


def _edit(record: Fields, number: int) -> _Edit:
    """From the files of ROME and MEMIT, those of MEND, or the schema of the other tasks. Raises InputError."""
    if "requested_rewrite" in record:
        return _rewrite(record, number)
    return _answered(record, number) if "src" in record else _described(record, number)


def _rewrite(record: Fields, number: int) -> _Edit:
    """CounterFact: a prompt with {} for the subject."""
    subject, prompt, new, true = (
        str(required(record, f"requested_rewrite.{name}", number)).strip()
        for name in ("subject", "prompt", "target_new.str", "target_true.str")
    )
    paraphrases = tuple(map(str, required(record, "paraphrase_prompts", number)))
    neighbours = tuple((str(prompt), true) for prompt in required(record, "neighborhood_prompts", number))
    return _Edit(prompt.replace("{}", subject), new, paraphrases, neighbours, true, subject)


def _answered(record: Fields, number: int) -> _Edit:
    """zsRE: as in ROME and MEMIT the first of ``answers`` is to be known; where there is none, ``alt``."""
    new = answers_of(record, number)[0] if record.get("answers") else str(required(record, "alt", number))
    prompt, paraphrase, neighbour, right = (
        str(required(record, name, number)) for name in ("src", "rephrase", "loc", "loc_ans")
    )
    subject = str(record.get("subject") or "")
    return _Edit(prompt.strip(), new.strip(), (paraphrase,), ((_question(neighbour), right),), subject=subject)


def _described(record: Fields, number: int) -> _Edit:
    """The schema's edits, of which those that are questions are zsRE's."""
    prompt, new = str(required(record, "question", number)).strip(), answers_of(record, number)[0].strip()
    paraphrase, neighbour, right = (
        str(required(record, f"meta.{name}", number)) for name in ("rephrase", "locality_prompt", "locality_answer")
    )
    subject = str(record["meta"].get("subject") or "")
    if prompt.endswith("?"):
        return _Edit(prompt, new, (paraphrase,), ((_question(neighbour), right),), subject=subject)
    true = str(required(record, "meta.ground_truth", number)).strip()
    return _Edit(prompt, new, (paraphrase,), ((neighbour, right),), true, subject)


def _question(text: str) -> str:
    """As MEMIT asks NaturalQuestions, whose questions have no mark."""
    return text if text.endswith("?") else f"{text}?"
