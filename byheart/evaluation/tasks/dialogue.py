"""How well a conversation's next reply is predicted after more and more of its turns (CCM, arXiv 2312.03414).

Turns are written one by one, the persona before them where there is one. The published evaluation
calls it step 12 when 13 turns are read; here a turn's number is how many were written. Its ``--eval_rouge``, which
generates the reply too, is the option ``rouge``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from byheart.data.json_rows import listed
from byheart.data.records import Fields, required
from byheart.evaluation.metrics import summary as summary_scores
from byheart.evaluation.task import Answer, Item, Part, Question, shuffled
from byheart.evaluation.tasks.perplexity import Perplexity


class Dialogue(Perplexity):
    """Perplexity of a reply, after so many turns of its conversation were written (CCM).

    After ``k`` turns, turn ``k + 1`` is what the user says, and turn ``k + 2`` the reply that is predicted, its end of
    turn left out. Conversations that are shorter have no number there.

    Args:
        turns: how many were written; CCM's steps are the defaults.
        persona: write it first. A single one is of the one who speaks second, whose replies alone are then predicted:
            those after an even number of turns.
        rouge: also generate the reply: ROUGE-L against the real one, with a stemmer, and how many words it has. Needs
            the package rouge_score.
    """

    name = "dialogue"
    max_tokens = 128
    higher_is_better: ClassVar = {"loss": False, "answer_words": None}
    unbounded = ("answer_words",)
    optional_metrics: ClassVar = {"rouge_l": "rouge", "answer_words": "rouge"}

    def __init__(self, *, turns: Sequence[int] = (1, 2, 4, 8, 12), persona: bool = True, rouge: bool = False) -> None:
        if not turns or min(turns) < 0:
            raise ValueError(f"turns must be numbers from 0 on, such as [2,4,8]; they are {turns}")
        self.turns, self.persona, self.rouge = turns, persona, rouge
        self.asks = "words" if rouge else "choices"

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per conversation that is long enough for a question. A package that is not there is named first."""
        if self.rouge:
            summary_scores.rouge("", "")
        for number, record in shuffled(records, seed):
            turns = [str(turn).strip() for turn in required(record, "meta.turns", number)]
            turns = [turn for turn in turns if turn]
            persona = record["meta"].get("persona") if self.persona else None
            before = [text for text in (_persona_text(persona),) if text]
            # A persona alone is of the one who speaks second.
            alone = bool(before) and not isinstance(persona, Mapping)
            asked = [k for k in sorted(set(self.turns)) if k + 2 <= len(turns) and not (alone and k % 2)]
            if asked:
                questions = [
                    Question(turns[k], choices=(turns[k + 1],), after=len(before) + k, conditions={"turn": k})
                    for k in asked
                ]
                # One line per turn, as dialogues are trained.
                yield Item(tuple(f"{text}\n" for text in (*before, *turns[: asked[-1]])), tuple(questions))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """The loss of the real reply, and how near the generated one is to it."""
        said = summary_scores.said_as(answer.text, question.choices[0]) if self.rouge else {}
        return {**Perplexity.score(self, question, answer), **said}


def _persona_text(persona: Any) -> str:
    """One line per sentence; where both speakers have a persona, each line says whose it is."""
    if isinstance(persona, Mapping):
        return "\n".join(f"{who}: {line}" for who, lines in persona.items() for line in listed(lines))
    return "\n".join(map(str, listed(persona)))
