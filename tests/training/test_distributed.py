"""One process needs nobody; several exchange what they must. Two real ones are in ``test_loop.py``, marked slow."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from byheart.errors import UsageError
from byheart.methods import build
from byheart.testing import tiny_backbone
from byheart.training import distributed
from byheart.training.distributed import Processes


class Gathered:
    """Stands for accelerate in the first of two processes; the other has what ``theirs`` makes of this one's tensor."""

    def __init__(self, theirs: Callable[[Tensor], Tensor]) -> None:
        self.theirs, self.utils, self.waited = theirs, self, 0

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return tensor + self.theirs(tensor)

    def broadcast(self, tensor: Tensor) -> Tensor:
        return self.theirs(tensor)

    def PartialState(self) -> Gathered:
        return self

    device = torch.device("cpu")

    def wait_for_everyone(self) -> None:
        self.waited += 1


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor], Tensor]], tuple[Processes, Gathered]]:
    def start(theirs: Callable[[Tensor], Tensor]) -> tuple[Processes, Gathered]:
        gathered = Gathered(theirs)
        monkeypatch.setattr(distributed.importlib, "import_module", lambda name: gathered)
        processes = Processes()
        processes.count = 2
        return processes, gathered

    return start


Two = Callable[[Callable[[Tensor], Tensor]], tuple[Processes, Gathered]]


def parameters(*grads: list[float] | None) -> list[Tensor]:
    made = []
    for grad in grads:
        parameter = torch.zeros(2, requires_grad=True)
        parameter.grad = None if grad is None else torch.tensor(grad)
        made.append(parameter)
    return made


# ---- one process ----


def test_one_process_is_the_first_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = Processes("cpu")
    assert (processes.count, processes.index, processes.device, processes.first) == (1, 0, "cpu", True)
    assert processes.total(1.5, 2) == [1.5, 2]
    (alone,) = made = parameters([1.0, 2.0])
    processes.average(made)
    assert alone.grad is not None
    assert alone.grad.tolist() == [1.0, 2.0]
    processes.wait()


def test_one_process_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    processes = Processes()
    processes.agree(build("compressed-kv", tiny_backbone(), tokens=2, rank=2))
    processes.wait()
    assert processes.total(3.0) == [3.0]


def test_several_processes_without_accelerate_are_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"several processes needs accelerate: pip install 'byheart\[train\]'"):
        Processes()


# ---- two processes ----


def test_totals_are_sums_over_processes(two: Two) -> None:
    processes, _ = two(lambda tensor: 10 * tensor)
    assert processes.total(1.0, 2.0) == [11.0, 22.0]


def test_gradients_become_their_mean(two: Two) -> None:
    processes, _ = two(lambda tensor: 3 * tensor)
    made = parameters([1.0, 2.0], [0.0, -4.0])
    processes.average(made)
    assert [part.grad.tolist() for part in made if part.grad is not None] == [[2.0, 4.0], [0.0, -8.0]]


def test_a_part_that_no_process_used_has_no_gradient_still(two: Two) -> None:
    processes, _ = two(lambda tensor: tensor)
    used, unused = made = parameters([1.0, 1.0], None)
    processes.average(made)
    assert used.grad is not None
    assert unused.grad is None


def test_a_part_that_only_the_other_process_used_has_half_of_its_gradient(two: Two) -> None:
    # First whether each part is used, then the gradients themselves.
    processes, _ = two(lambda tensor: torch.tensor([1.0, 0.0, 6.0, 8.0, 0.0, 0.0]))
    here, there = made = parameters(None, None)
    processes.average(made)
    assert here.grad is not None
    assert here.grad.tolist() == [3.0, 4.0]
    assert there.grad is None


def test_a_gradient_keeps_the_type_of_its_parameter(two: Two) -> None:
    processes, _ = two(lambda tensor: tensor)
    parameter = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    parameter.grad = torch.ones(2, dtype=torch.bfloat16)
    processes.average([parameter])
    assert parameter.grad.dtype == torch.bfloat16


def test_all_take_the_learned_parts_of_the_first(two: Two) -> None:
    processes, _ = two(lambda tensor: torch.full_like(tensor, 0.25))
    method = build("compressed-kv", tiny_backbone(), tokens=2, rank=2)
    with torch.no_grad():
        processes.agree(method)
    assert all((tensor == 0.25).all() for tensor in method.state_dict().values())


def test_waiting_is_for_everyone(two: Two) -> None:
    processes, gathered = two(lambda tensor: tensor)
    processes.wait()
    assert gathered.waited == 1
