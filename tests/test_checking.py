"""What is annotated is checked: without this, a wrong shape in byheart would be found by its user."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from jaxtyping import TypeCheckError

from byheart.model.reading import KV
from tests import checking

_CODE = """
from __future__ import annotations
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from jaxtyping import Float, Int
from torch import Tensor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elsewhere import Other

def unknown(x: Other, y: int = 1) -> list[Other]:
    return [x] * y

def same(x: Float[Tensor, "A B"], y: Float[Tensor, "A"]) -> Float[Tensor, "B"]:
    return x[0] if len(y) else y

def outer(x: Float[Tensor, "A"], y: Float[Tensor, "B"]) -> int:
    return inner(y) + inner(x)

def inner(x: Float[Tensor, "A"]) -> int:
    return len(x)

def pieces(x: Float[Tensor, "A"], y: Float[Tensor, "A"]) -> Iterator[int]:
    yield from range(len(x))

@contextmanager
def held(x: Int[Tensor, "A"]) -> Iterator[int]:
    yield len(x)

@dataclass(frozen=True)
class Pair:
    one: Float[Tensor, "A"]
    other: Float[Tensor, "A"]
    unknown: Other = None

    @property
    def size(self) -> str:
        return len(self.one)

    @classmethod
    def of(cls, size: int) -> Pair:
        return cls(size, size)
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package whose functions are checked."""
    (tmp_path / "packaged").mkdir()
    (tmp_path / "packaged" / "__init__.py").write_text(_CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    checking.install("packaged")
    yield importlib.import_module("packaged")
    del sys.modules["packaged"]


def test_shapes_are_checked_across_arguments_and_the_result(made: ModuleType) -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2)
    assert made.same(x, y).shape == (3,)
    for wrong in ((x, torch.zeros(3)), (y, x), (x, 1), (x.long(), y)):
        with pytest.raises(TypeCheckError):
            made.same(*wrong)
    with pytest.raises(TypeCheckError):
        made.same(torch.zeros(0, 3), torch.zeros(0))


def test_a_function_s_dimensions_are_not_those_of_its_caller(made: ModuleType) -> None:
    assert made.outer(torch.zeros(2), torch.zeros(5)) == 7


def test_generators_and_context_managers_are_checked_when_they_are_made(made: ModuleType) -> None:
    assert list(made.pieces(torch.zeros(2), torch.zeros(2))) == [0, 1]
    with pytest.raises(TypeCheckError):
        made.pieces(torch.zeros(2), torch.zeros(3))
    with made.held(torch.zeros(4).long()) as length:
        assert length == 4
    with pytest.raises(TypeCheckError), made.held(torch.zeros(4)):
        pass


def test_fields_properties_and_methods_are_checked(made: ModuleType) -> None:
    pair = made.Pair(torch.zeros(2), torch.zeros(2))
    for wrong in (lambda: made.Pair(torch.zeros(2), torch.zeros(3)), lambda: made.Pair.of(1), lambda: pair.size):
        with pytest.raises(TypeCheckError):
            wrong()


def test_what_only_a_type_checker_knows_is_not_checked(made: ModuleType) -> None:
    assert made.unknown("a", 2) == ["a", "a"]
    with pytest.raises(TypeCheckError):
        made.unknown("a", "b")


def test_byheart_is_checked() -> None:
    with pytest.raises(TypeCheckError):
        KV((torch.zeros(1, 2, 3, 4),), (torch.zeros(1, 2, 5, 4),))


def test_what_is_imported_already_cannot_be_checked() -> None:
    with pytest.raises(RuntimeError, match="byheart is imported already"):
        checking.install("byheart")
