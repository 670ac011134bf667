"""Measuring methods: tasks, the loop that runs them, and their results."""

from byheart.evaluation import tasks as tasks
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.grid_search import search
from byheart.evaluation.results import Result
from byheart.evaluation.task import Answer, Item, Part, Question, Task

__all__ = ["Answer", "Item", "Part", "Question", "Result", "Task", "evaluate", "search", "tasks"]
