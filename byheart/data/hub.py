"""Data sets of the Hugging Face hub, by one notation: ``OWNER/NAME/CONFIG:SPLIT[:N]@REVISION``.

Config, split, number and revision may be left out: the split is then ``train``. ``[:N]`` reads the first N records as
they arrive, and nothing after them, so that data of any size can be named. Names that had no owner when they were
published, such as ``super_glue/boolq:validation``, are understood as well. A folder of this name is read in place of
the hub, which is how the package `datasets` works.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from byheart.errors import InputError, UsageError

CONVERTED = "refs/convert/parquet"
"""The revision in which the hub keeps a copy of data whose loading needs a script."""
_FORMER = {
    "c4": "allenai/c4",
    "glue": "nyu-mll/glue",
    "race": "ehovy/race",
    "super_glue": "aps/super_glue",
    "wikitext": "Salesforce/wikitext",
}
_NOTATION = re.compile(
    r"(?P<path>[\w.-]+(?:/[\w.-]+){0,2})(?::(?P<split>[\w.]*)(?:\[:(?P<first>\d+)\])?)?(?:@(?P<revision>[\w./-]+))?"
)


@dataclass(frozen=True)
class HubName:
    """A part of a data set on the hub; ``first`` is how many records are read, 0 all."""

    name: str
    config: str = ""
    split: str = "train"
    first: int = 0
    revision: str = ""

    @classmethod
    def of(cls, source: str) -> HubName:
        """What a name says. Raises UsageError for one that is not in the notation."""
        found = _NOTATION.fullmatch(source)
        if found is None:
            raise UsageError(
                f"'{source}' is no file or folder, and no name of the hub, such as aps/super_glue/boolq:validation "
                "or allenai/c4/en:train[:1000]."
            )
        name, config = _split_config(found["path"])
        return cls(name, config, found["split"] or "train", int(found["first"] or 0), found["revision"] or "")

    @property
    def dataset(self) -> str:
        """What its records are called."""
        return f"{self.name}/{self.config}" if self.config else self.name


def read_hub(source: str, *, place: str = "", streamed: bool = False) -> Iterator[Mapping[str, Any]]:
    """The records of a name, one after another.

    Args:
        place: a folder that holds a copy of the data set, in place of the hub.
        streamed: read them as they arrive; else the data set is first downloaded whole, unless it has a number.

    Raises UsageError where `datasets` is missing, InputError where the data cannot be read.
    """
    hub = HubName.of(source)
    datasets = _import(source)
    # Of the hub's copies, a config is a folder.
    inside = {"data_dir": hub.config} if hub.revision == CONVERTED and hub.config else {"name": hub.config or None}
    options = {**inside, "split": hub.split, "revision": hub.revision or None, "streaming": streamed or bool(hub.first)}
    try:
        rows = datasets.load_dataset(place or hub.name, **{key: value for key, value in options.items() if value})
        # A stream is read, and may fail, while it is gone through.
        for row in islice(rows, hub.first) if hub.first else rows:
            yield {"dataset": hub.dataset, **row}
    # A data set that is a script is a RuntimeError.
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"Data set '{source}' could not be read from the hub: {_said(error)}") from error


def is_saved(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk`` of `datasets`: one split, or several."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def read_saved(path: Path) -> Iterator[Mapping[str, Any]]:
    """The records of a split that ``save_to_disk`` wrote. Raises InputError for a folder of several splits."""
    datasets = _import(str(path))
    try:
        found = datasets.load_from_disk(str(path))
    # Of a damaged state.json it is a KeyError.
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        raise InputError(f"'{path}' cannot be read: {_said(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        raise InputError(f"'{path}' has several splits; give the folder of one: {', '.join(sorted(found))}.")
    yield from found


def short_name(source: str) -> str:
    """A name without its revision, for results."""
    found = _NOTATION.fullmatch(source)
    return source if found is None else source.removesuffix(f"@{found['revision']}")


def _split_config(path: str) -> tuple[str, str]:
    first, *rest = path.split("/")
    if first in _FORMER and len(rest) < 2:
        return _FORMER[first], rest[0] if rest else ""
    return "/".join([first, *rest[:1]]), rest[1] if len(rest) > 1 else ""


def _import(source: str) -> Any:
    found = importlib.util.find_spec("datasets")
    # A folder called datasets has no origin.
    if found is None or found.origin is None:
        raise UsageError(
            f"'{source}' is no file or folder. To read it from the Hugging Face hub: pip install 'byheart[hub]'"
        )
    return importlib.import_module("datasets")


def _said(error: Exception) -> str:
    """An error of `datasets` in one line, with what helps."""
    text = " ".join(str(error).split()).rstrip(".")
    if "script" in text.lower():
        return f"{text}. Its loading needs a script, which is not run; add @{CONVERTED} for the hub's copy of it."
    return (
        f"{text}. Files that came by other means are read by their path; without a network, HF_HUB_OFFLINE=1 saves the "
        "minute of retries."
    )
