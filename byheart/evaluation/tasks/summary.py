"""Summaries of a text that was written (FastMem, arXiv 2406.16069): CNN-DM, XSum and WikiHow.

Records have byheart's schema, or the fields ``article`` and ``summary`` of the paper's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from byheart.data.records import Fields, required
from byheart.errors import InputError, UnknownNameError, require_not_negative
from byheart.evaluation.metrics import summary as summary_scores
from byheart.evaluation.task import Answer, Item, Part, Question, Task, answers_of, cut_text, shuffled
from byheart.text.encoder import ChatEncoder

_ASKED = {
    "cnndm": "Summarize the above article in 3 sentences.",
    "xsum": "Summarize the above article in 1 sentence.",
    "wikihow": "Summarize the above article in few steps using concise verb-object phrases directly.",
}


class Summary(Task):
    """ROUGE of a summary; BERT-P and FactKB too, which were not run on their real models (FastMem).

    ROUGE is against the gold summary, the other two against the article.

    Args:
        context: repeat the article in the question, as published, see ``faithful``.
        dataset: cnndm, xsum or wikihow, for records that do not say one of these, nor come from a file that does.
        words: an article is cut after so many; 0 is never.
        bertscore: also how well the summary's tokens are matched by the article; needs the package bert_score. Not run
            on its real model.
        factkb: also how likely the classifier FactKB holds the summary to be true to the article; its folder where it
            does not come from the hub. Not run on its real model.
        first: of each data set, only so many records from the beginning; 0 is all.
        doc_tokens: an article is cut after so many, as published (7,500); 0 is never.
    """

    name = "summary"
    max_tokens = 400
    optional_metrics: ClassVar = {"bert_precision": "bertscore", "factkb": "factkb"}
    sources: ClassVar[Fields] = {
        "xsum": "EdinburghNLP/xsum:test",
        "cnndm": "abisee/cnn_dailymail/3.0.0:test",
    }

    def __init__(
        self,
        *,
        dataset: str = "",
        words: int = 5000,
        bertscore: bool = False,
        factkb: bool | str = False,
        context: bool = False,
        first: int = 0,
        doc_tokens: int = 0,
    ) -> None:
        require_not_negative(first=first, doc_tokens=doc_tokens)
        self.dataset, self.words, self.bertscore, self.factkb = dataset, words, bertscore, factkb
        self.context, self.first, self.doc_tokens = context, first, doc_tokens
        self._factkb = summary_scores.FACTKB if factkb is True else str(factkb)
        self._encoder: ChatEncoder | None = None

    def split(self, encoder: ChatEncoder) -> Sequence[Task]:
        """This task alone; the encoder counts the tokens of an article."""
        self._encoder = encoder
        return (self,)

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per article. A package that a score lacks is named here, before anything is generated."""
        summary_scores.rouge("", "")
        if self.bertscore:
            summary_scores.open_bert_scorer()
        if self.factkb:
            summary_scores.open_factkb(self._factkb)
        for number, record in shuffled(records, seed, first=self.first):
            name = self._dataset(record)
            if not name or "/" in name:
                said = f"is of '{name}', which is none that has a prompt" if name else "has no 'dataset'"
                raise InputError(
                    f"Record {number} {said}, which decides what is asked; give -o dataset=NAME for all records, one "
                    f"of {', '.join(_ASKED)}."
                )
            if name not in _ASKED:
                raise UnknownNameError("prompt of summary for the data set", name, _ASKED)
            article = self._article(record, number)
            gold = answers_of({**record, "answers": _first(record, number, "answers", "summary", "highlights")}, number)
            asked = Question(_ASKED[name], gold, about={"article": article}, record=number)
            repeated = replace(asked, text=f"Article: {article}\n{_ASKED[name]}", unconditional=_ASKED[name])
            yield Item((article,), (repeated if self.context else asked,))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """ROUGE without a stemmer, by the best of the gold summaries."""
        found = max((summary_scores.rouge(answer.text, gold) for gold in question.answers), key=lambda by: by.rouge_l)
        scores: dict[str, float | Part] = {"rouge1": found.rouge1, "rouge2": found.rouge2, "rouge_l": found.rouge_l}
        pair = answer.text, question.about["article"]
        if self.bertscore:
            scores["bert_precision"] = summary_scores.bert_precision(*pair)
        if self.factkb:
            scores["factkb"] = summary_scores.factkb(*pair, model=self._factkb)
        return scores

    def _dataset(self, record: Fields) -> str:
        """The name in the record, that of the hub counting as the short one; else the option."""
        name = str(record.get("dataset") or "")
        known = {source.partition(":")[0]: name for name, source in self.sources.items()}
        # The paper's files say it in their names alone, such as xsum_sample_test_3000.jsonl.
        begins = name.rpartition("/")[2].partition("_")[0]
        name = known.get(name, begins if begins in _ASKED else name)
        return name if name in _ASKED else self.dataset or name

    def _article(self, record: Fields, number: int) -> str:
        text = str(_first(record, number, "context", "article", "document", "text")).strip()
        cut = " ".join(text.split()[: self.words]) if 0 < self.words < len(text.split()) else text
        return cut_text(cut, self.doc_tokens, self._encoder)


def _first(record: Fields, number: int, *names: str) -> object:
    """The first of these fields that is there. Raises InputError with the first one's name."""
    present = [name for name in names if record.get(name)]
    return required(record, present[0] if present else names[0], number)
