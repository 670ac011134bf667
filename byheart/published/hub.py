"""A released folder by its name on the Hugging Face hub: ``OWNER/NAME``, ``OWNER/NAME/FOLDER``, ``...@REVISION``.

What is fetched lies in the hub's cache, where other programs find it too. What a folder holds is not known here.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from byheart.errors import CheckpointError

_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?P<inside>(?:/[\w-][\w.-]*)*)(?:@(?P<revision>[\w./-]+))?")
_SETTINGS = ("*.json", "*.model", "*.txt", "*.jinja")
# Some repositories hold the same weights twice; the first kind that is there is enough.
_WEIGHTS = ("*.safetensors", "*.bin")


def find_folder(source: str | Path) -> Path:
    """A folder on this machine, or the copy of one of the hub, fetched where it is not in the cache.

    A folder that is here is taken before one of the hub. Raises CheckpointError where it cannot be fetched.
    """
    path = Path(source).expanduser()
    named = _NAME.fullmatch(str(source))
    if path.exists() or named is None:
        return path
    inside = named["inside"].strip("/")
    try:
        found = Path(_fetch(named["repo"], named["revision"], [f"{inside}/{name}".lstrip("/") for name in _SETTINGS]))
        for kind in _WEIGHTS:
            _fetch(named["repo"], named["revision"], [f"{inside}/{kind}".lstrip("/")])
            if next((found / inside).glob(kind), None):
                break
    # Its errors of the network, of names, and of what is not in the cache.
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise CheckpointError(
            f"There is no folder '{source}', and it could not be fetched from the hub: {said}. Go online, or give a "
            "folder that holds a copy."
        ) from error
    return found / inside


def name_of(source: str | Path) -> str:
    """What a released folder is called, wherever its copy lies."""
    named = _NAME.fullmatch(str(source))
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() or named is None else (named["repo"] + named["inside"]).split("/")[-1]


def _fetch(repo: str, revision: str | None, patterns: list[str]) -> str:
    found: str = snapshot_download(repo, revision=revision, allow_patterns=patterns)
    return found
