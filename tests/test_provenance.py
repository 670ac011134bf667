"""Installed releases: they are recorded, and what is below the bounds is said in one line."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import pytest

from byheart import provenance
from byheart.cli import list as list_command, main
from byheart.errors import ModelError
from byheart.model import loading
from byheart.provenance import find_outdated, versions
from tests.conftest import Run

REQUIRES = [
    "torch>=2.13",
    "transformers>=5.16.1",
    "tomli>=2.2; python_version < '3.11'",
    "accelerate>=9.9; extra == 'train'",
]


def installed(**releases: str) -> Callable[[str], str]:
    """Looks releases up as ``importlib.metadata.version`` does."""

    def look_up(package: str) -> str:
        if package not in releases:
            raise PackageNotFoundError(package)
        return releases[package]

    return look_up


def find(**releases: str) -> str:
    return find_outdated(requires=lambda package: REQUIRES, version=installed(**releases))


def test_versions_names_what_is_absent_and_what_is_run_from_its_source() -> None:
    found = versions(["torch", "no-such-package"])
    assert found == {"torch": version("torch"), "no-such-package": "absent"}
    assert versions().keys() == {"byheart", "torch", "transformers"}
    assert versions()["byheart"] != "absent"


def test_this_environment_is_recent_enough() -> None:
    assert find_outdated() == ""


@pytest.mark.parametrize("torch", ["2.13", "2.13.0", "2.13.0+cpu", "2.14.0.dev20260901", "3.0", "10.0"])
@pytest.mark.parametrize("transformers", ["5.16.1", "5.16.1.post1", "5.16.10", "5.17", "6.0.0rc1"])
def test_a_release_at_or_above_its_bound_is_fine(torch: str, transformers: str) -> None:
    assert find(torch=torch, transformers=transformers) == ""


@pytest.mark.parametrize("release", ["5.16.0", "5.16", "5.9.2", "4.57.1", "0", "5.2.100"])
def test_an_older_release_is_named_with_its_bound_and_what_to_do(release: str) -> None:
    assert find(torch="2.13.0", transformers=release) == (
        f"byheart needs transformers 5.16.1 or newer, but {release} is installed: pip install 'transformers>=5.16.1'"
    )


def test_a_package_that_is_missing_is_named_too() -> None:
    assert find(torch="2.13.0") == (
        "byheart needs transformers 5.16.1 or newer, but none is installed: pip install 'transformers>=5.16.1'"
    )


def test_all_that_is_outdated_is_one_line_with_one_command() -> None:
    line = find(torch="2.9.1+cpu", transformers="5.1")
    assert line.count("\n") == 0
    assert "torch 2.13 or newer, but 2.9.1+cpu is installed; transformers 5.16.1 or newer" in line
    assert line.endswith(": pip install 'torch>=2.13' 'transformers>=5.16.1'")


def test_extras_and_packages_of_other_pythons_are_not_asked_for() -> None:
    assert "accelerate" not in find()
    assert "tomli" not in find()


def test_a_checkout_that_is_not_installed_has_no_bounds() -> None:
    def absent(package: str) -> list[str]:
        raise PackageNotFoundError(package)

    assert find_outdated(requires=absent, version=installed()) == ""
    assert find_outdated(requires=lambda package: None, version=installed()) == ""


# ---- where it is said ----

LINE = "byheart needs transformers 5.16.1 or newer, but 5.1 is installed: pip install 'transformers>=5.16.1'"


def test_opening_a_model_says_it_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_outdated", lambda: LINE)
    with pytest.raises(ModelError, match=r"transformers 5\.16\.1 or newer, but 5\.1 is installed"):
        loading.open_model("./no-such-model")


def fail_to_import() -> None:
    raise ImportError("cannot import name 'GgufConfig' from 'transformers'")


def test_the_command_line_says_it_in_place_of_a_failed_import(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_command, "list_memories", fail_to_import)
    monkeypatch.setattr(provenance, "find_outdated", lambda: LINE)
    ran = run("list")
    assert (ran.code, ran.out, ran.err) == (1, "", f"byheart: {LINE}\n")


def test_a_failed_import_with_another_cause_is_shown_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_command, "list_memories", fail_to_import)
    with pytest.raises(ImportError, match="GgufConfig"):
        main(["list"])
