"""LongBench's English tasks (arXiv 2308.14508): the context is written, the rest of the official prompt is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from byheart.data.records import Fields, required
from byheart.errors import UnknownNameError
from byheart.evaluation.metrics import longbench as longbench_scores
from byheart.evaluation.results import Result, average
from byheart.evaluation.task import Answer, Item, Part, Question, Task, answers_of, shuffled


class _Prompt(NamedTuple):
    """The official prompt before and after the context, with the tokens of an answer at most.

    Where a prompt ends in examples, the model continues them; as published, it is not put into the chat template.
    """

    before: str
    after: str
    max_tokens: int
    use_chat_template: bool = True


class LongBench(Task):
    """LongBench's own score of each English data set, answered from what a memory kept of the context.

    The official prompt is cut where the context ends: what stands before is written with it, the rest is the question.

    Args:
        words: of the context, the last so many; 0 is all. Published runs keep the last tokens of the whole prompt.
    """

    name = "longbench"

    def __init__(self, *, words: int = 0) -> None:
        if words < 0:
            raise ValueError(f"words must be 0 or more; it is {words}")
        self.words = words

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per record."""
        for number, record in shuffled(records, seed):
            subset, answers = str(required(record, "dataset", number)), answers_of(record, number)
            if subset not in _PROMPTS:
                raise UnknownNameError(f"English LongBench data set (record {number})", subset, _PROMPTS)
            prompt, context = _PROMPTS[subset], str(required(record, "context", number))
            # Of trec alone the classes are needed; other records have null.
            classes = tuple(required(record, "all_classes", number)) if subset == "trec" else ()
            asked = prompt.after
            if "{input}" in asked:
                asked = asked.replace("{input}", str(required(record, "input", number)))
            question = Question(
                asked,
                answers,
                conditions={"subset": subset},
                use_chat_template=prompt.use_chat_template,
                about={"classes": classes},
                max_tokens=prompt.max_tokens,
            )
            text = prompt.before + _last_words(context, self.words)
            yield Item((text,), (question,), use_chat_template=prompt.use_chat_template)

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """By the scorer of its data set."""
        subset, classes = question.conditions["subset"], question.about["classes"]
        return {"score": longbench_scores.score(subset, answer.text, question.answers, classes=classes)}

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """The mean over data sets, where there are several; its bounds are the means of theirs, mostly too wide."""
        if len(rows) < 2:
            return []
        n = sum(row.n for row in rows)
        kept = round(sum(row.bytes * row.n for row in rows) / n)
        seconds = sum(row.seconds * row.n for row in rows) / n
        return [average(rows, metric="average", n=n, bytes=kept, seconds=seconds, conditions={}, costs={})]


def _last_words(text: str, words: int) -> str:
    """The end of a text, whitespace between its words as it is; all of it for 0."""
    begins = [found.start() for found in re.finditer(r"\S+", text)] if words else []
    return text[begins[-words] :] if len(begins) > words else text


_PASSAGES = _Prompt(
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "The following are given passages.\n",
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "Question: {input}\nAnswer:",
    32,
)
_BRIEFLY = "the question asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n"
_ARTICLE = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based "
    'on the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", '
    '"no", or "unanswerable". Do not provide any explanation.\n\n'
)
_PROMPTS: Mapping[str, _Prompt] = {
    # The slip "asconcisely" is the published one.
    "narrativeqa": _Prompt(
        "You are given a story, which can be either a novel or a movie script, and a question. Answer "
        f"{_BRIEFLY}Story: ",
        "Now, answer the question based on the story asconcisely as you can, using a single phrase if possible. "
        "Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:",
        128,
    ),
    "qasper": _Prompt(
        f"You are given a scientific article and a question. Answer the question {_ARTICLE}Article: ",
        f"Answer the question based on the above article {_ARTICLE}Question: {{input}}\n\nAnswer:",
        128,
    ),
    "multifieldqa_en": _Prompt(
        "Read the following text and answer briefly.\n\n",
        "Now, answer the following question based on the above text, only give me the answer and do not output any "
        "other words.\n\nQuestion: {input}\nAnswer:",
        64,
    ),
    "hotpotqa": _PASSAGES,
    "2wikimqa": _PASSAGES,
    "musique": _PASSAGES,
    "gov_report": _Prompt(
        "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n",
        "Now, write a one-page summary of the report.\n\nSummary:",
        512,
    ),
    "qmsum": _Prompt(
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one "
        "or more sentences.\n\nTranscript:\n",
        "Now, answer the query based on the above meeting transcript in one or more sentences.\n\n"
        "Query: {input}\nAnswer:",
        512,
    ),
    "multi_news": _Prompt(
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n",
        "Now, write a one-page summary of all the news.\n\nSummary:",
        512,
    ),
    "trec": _Prompt(
        "Please determine the type of the question below. Here are some examples of questions.\n\n",
        "\n{input}",
        64,
        use_chat_template=False,
    ),
    "triviaqa": _Prompt(
        "Answer the question based on the given passage. Only give me the answer and do not output any other words. "
        "The following are some examples.\n\n",
        "\n\n{input}",
        32,
        use_chat_template=False,
    ),
    "samsum": _Prompt(
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n",
        "\n\n{input}",
        128,
        use_chat_template=False,
    ),
    "passage_count": _Prompt(
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read "
        "these paragraphs and determine how many unique paragraphs there are after removing duplicates. In other "
        "words, how many non-repeating paragraphs are there in total?\n\n",
        "Please enter the final count of unique paragraphs after removing duplicates. The output format should only "
        "contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: ",
        32,
    ),
    "passage_retrieval_en": _Prompt(
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract "
        "is from.\n\n",
        "The following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph that the abstract is "
        'from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: ',
        32,
    ),
}
