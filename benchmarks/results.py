"""Measure what docs/explanation/results.md shows, and write it.

    python benchmarks/results.py --data eval                          measure what is missing, then write the page
    python benchmarks/results.py --data eval --only questions edit    these alone
    python benchmarks/results.py --data eval --at NAME=FILE           those on model NAME, too, which lies there
    python benchmarks/results.py --report                             the page alone, from the result files

``benchmarks/results.toml`` says what is measured. Runs lie in ``runs/results``, where an interrupted one is resumed;
the rows of each are kept in ``benchmarks/results/tasks/NAME/rows.json``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

if TYPE_CHECKING:
    from byheart.reports.compare import Comparison

ROOT = Path(__file__).resolve().parent.parent
PLAN = ROOT / "benchmarks" / "results.toml"
KINDS = ("code", "lists", "messages")
"""Data that ``benchmarks/kinds.py`` makes from what this machine has."""
KEPT = ROOT / "benchmarks" / "results" / "tasks"
PAGE = ROOT / "docs" / "explanation" / "results.md"
_HEAD = """# Results

What the methods are worth on SmolLM2-135M-Instruct, one measure after another, each with its command.

```sh
python benchmarks/results.py --data {data}
```

runs what `benchmarks/results.toml` lists on a folder of public data sets ([Data](../reference/data.md)), keeps the
rows in `benchmarks/results/tasks/` and writes this page from them; studies at the end have scripts of their own.
Brackets and bars are 95 % intervals over clusters: what was drawn at once, such as a paragraph with all of its
questions, of which there are `n`. Numbers over fewer than ten clusters have none, and shares of few hits or few misses
have Wilson's ([Measures](measures.md#intervals)). Limits are small, so that two CPU cores can repeat it: where
intervals overlap, no difference is shown. [How to read these numbers](reading-results.md) has the questions that a
reviewer asks. Seconds are rough, and are measured properly in [Costs](costs.md); measures that were computed in float32
ran on a slower machine, so that their seconds do not compare with those of others. What came out and why is in the
[log](log.md), how it is measured in [Tasks](../reference/tasks.md) and [Measures](measures.md).
`byheart compare benchmarks/results/tasks --out report` makes a page with every figure.
"""


@dataclass(frozen=True)
class Study:
    """What a script of its own measured: its rows are only shown."""

    name: str
    title: str
    note: str
    command: str


@dataclass(frozen=True)
class Measure:
    """One entry of the plan."""

    name: str
    title: str
    note: str
    task: str
    data: Sequence[str]
    methods: Sequence[str]
    limit: int
    batch: int = 8
    options: Mapping[str, Any] = field(default_factory=dict)
    against: str = ""
    control: Sequence[str] = ()
    figures: Sequence[str] = ()
    model: str = ""

    def command(self, data: str) -> str:
        """The same for ``byheart evaluate``."""
        files = "".join(f" --data {data}/{each}.jsonl" for each in self.data)
        options = "".join(f" -o {key}={_plain(value)}" for key, value in self.options.items())
        against = f" --against '{self.against}'" if self.against else ""
        control = f" --control {','.join(self.control)}" if self.control else ""
        model = f" --model {self.model}" if self.model else ""
        methods = ",".join(self.methods)
        rest = f"{options}{against}{control} --limit {self.limit}{model}"
        return f"byheart evaluate {self.task} --method '{methods}'{files}{rest}"


def plan(path: Path) -> list[Measure]:
    """What is to be measured."""
    return [Measure(**each) for each in tomllib.loads(path.read_text(encoding="utf-8"))["measure"]]


def studies(path: Path) -> list[Study]:
    """What is only shown."""
    return [Study(**each) for each in tomllib.loads(path.read_text(encoding="utf-8")).get("study", [])]


def find_obstacle(one: Measure, given: argparse.Namespace) -> str:
    """What is not there that a measure needs, and where to get it; empty where all is."""
    if one.model and one.model not in given.at:
        return f"say where the model lies: --at {one.model}=FILE, a folder, a GGUF file or a name of the hub"
    lacking = [name for name in one.data if not (given.data / f"{name}.jsonl").exists()]
    where = "`python benchmarks/kinds.py FOLDER`" if set(lacking) <= set(KINDS) else "`byheart data get all`"
    return f"{given.data} has no {', '.join(lacking)}, which {where} makes" if lacking else ""


def measure(one: Measure, given: argparse.Namespace) -> None:
    """Run what is not there yet, and keep the rows."""
    from byheart.evaluation.evaluate import evaluate
    from byheart.evaluation.tasks import build

    folder = given.runs / one.name
    for name in one.data:
        print(f"{one.name}: {name}", file=sys.stderr, flush=True)
        evaluate(
            build(one.task, **one.options),
            str(given.data / f"{name}.jsonl"),
            one.methods,
            model=given.at[one.model] if one.model else given.model,
            dtype=given.dtype,
            limit=min(one.limit, given.limit or one.limit),
            batch=one.batch,
            against=one.against,
            control=one.control,
            out=folder,
            progress=_Told(),
        )
    keep(folder / "rows.json", given.kept / one.name / "rows.json", data=one.data, model=one.model)


def keep(rows: Path, kept: Path, *, data: Sequence[str], model: str) -> None:
    """Copy what a result file says of some data sets; of a model that lies on this machine it has only the name.

    Rows of others were made once, of files that are not in the plan now, and not again with these.
    """
    found = json.loads(rows.read_text(encoding="utf-8"))
    found["rows"] = [row for row in found["rows"] if row["dataset"] in data]
    if model:
        found["about"]["model"] = model
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class _Told:
    """A line for each tenth."""

    def __init__(self) -> None:
        self._tenth = 0

    def __call__(self, done: int, total: int) -> None:
        if total and (tenth := 10 * done // total) > self._tenth:
            self._tenth = tenth
            print(f"  {10 * tenth} %", file=sys.stderr, flush=True)


def report(measures: Sequence[Measure], given: argparse.Namespace) -> str:
    """The page, as Markdown; its figures are put beside it."""
    shown = (line for one in measures for line in _chapter(one, given))
    more = (line for one in studies(given.plan) for line in _of_study(one, given))
    return "\n".join([_HEAD.format(data=_SHOWN), *shown, *more])


_SHOWN = "eval"


def _chapter(one: Measure, given: argparse.Namespace) -> Iterator[str]:
    """Title, what was done, figures, tables; nothing where nothing was measured."""
    from byheart.reports.compare import compare
    from byheart.reports.floors import floor_notes

    rows = given.kept / one.name / "rows.json"
    if not rows.exists():
        return
    yield from (f"## {one.title}\n", one.note.strip(), "", "```sh", one.command(_SHOWN), "```", "")
    with TemporaryDirectory() as folder:
        made = compare([rows], out=folder, figures=one.figures)
        figures = given.page.parent / given.page.stem
        figures.mkdir(parents=True, exist_ok=True)
        ordered = [path for end in one.figures for path in made.plots if path.stem.endswith(f"-{end}")]
        for plot in (path for path in ordered if path.suffix == ".svg"):
            # Several measures may have one task and data set: each has a figure of its own.
            name = f"{one.name}{plot.name.removeprefix(one.task)}"
            shutil.copyfile(plot, figures / name)
            yield f"![{Path(name).stem.replace('-', ' ')}]({given.page.stem}/{name})\n"
    yield from _tables(one.name, made)
    yield from (f"{note}\n" for note in floor_notes([number.row for number in made.numbers]))
    dtype = json.loads(rows.read_text(encoding="utf-8"))["about"]["dtype"]
    yield f"`benchmarks/results/tasks/{one.name}/rows.json`, computed in {dtype}.\n"


def _of_study(one: Study, given: argparse.Namespace) -> Iterator[str]:
    """The same without figures; the file lies beside the folder of the other ones."""
    from byheart.reports.compare import compare

    rows = given.kept.parent / f"{one.name}.json"
    if not rows.exists():
        return
    yield from (f"## {one.title}\n", one.note.strip(), "", "```sh", one.command.strip(), "```", "")
    with TemporaryDirectory() as folder:
        yield from _tables(one.name, compare([rows], out=folder, figures=()))
    yield f"`benchmarks/results/{one.name}.json`\n"


def _tables(name: str, made: Comparison) -> Iterator[str]:
    """Every table, each row of which can be linked to."""
    from byheart.reports.html_report import anchor, markdown_table

    # The last chapter is about the files that the numbers came from.
    for chapter in made.chapters[:-1]:
        yield f"**{chapter.title}**\n"
        for table in chapter.tables:
            head, rule, *rows = markdown_table(table)
            # A row is named by its method, and by its conditions where there are any.
            cells = 2 if table.header[1] == "of" else 1
            dataset = chapter.title.rpartition(" · ")[2]
            anchors = [anchor(name, dataset, *(cell.text for cell in row[:cells])) for row in table.rows]
            named = [row.replace("| ", f'| <a id="{at}"></a>', 1) for row, at in zip(rows, anchors, strict=True)]
            yield from (head, rule, *named, "")


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return shlex.quote(value)
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of JSON lines, NAME.jsonl for each name in the plan")
    parser.add_argument("--plan", type=Path, default=PLAN, help="what is measured")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of the plan")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--at", action="append", default=[], metavar="NAME=FILE", help="where a second model lies")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--limit", type=int, default=0, help="items of each file at most; 0 is what the plan says")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of result files")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    given.at = dict(each.split("=", 1) for each in given.at)
    measures = plan(given.plan)
    if unknown := set(given.only) - {one.name for one in measures}:
        raise SystemExit(f"{given.plan.name} has no {', '.join(sorted(unknown))}.")
    if not given.report:
        if given.data is None:
            parser.error("give --data, or --report for the page alone")
        for one in measures:
            if given.only and one.name not in given.only:
                continue
            if obstacle := find_obstacle(one, given):
                print(f"{one.name}: left out; {obstacle}", file=sys.stderr)
            else:
                measure(one, given)
    given.page.write_text(report(measures, given), encoding="utf-8")


if __name__ == "__main__":
    main()
