from __future__ import annotations

from byheart.protocol.episode import Batch, Episode, collate
from byheart.training.revisits import Revisits
from tests.samples import tokens


def batches(number: int) -> Batch:
    return collate([Episode((tokens(5, seed=number)[0],), tokens(4, seed=1000 + number)[0])])


def test_the_first_target_after_a_revisit_is_the_next_to_come_again() -> None:
    plan = [Revisits(batches, 0.5, 3).earlier(n) for n in range(200)]
    due = 0
    for number, earlier in enumerate(plan):
        if number == 0 or plan[number - 1] is not None:
            assert earlier is None
            due = number
        else:
            assert earlier in (None, due)
    revisits = sum(earlier is not None for earlier in plan)
    # One of three steps: a coin after each ordinary one.
    assert 50 <= revisits <= 83
    assert plan == [Revisits(batches, 0.5, 3).earlier(n) for n in range(200)]
    assert plan != [Revisits(batches, 0.5, 4).earlier(n) for n in range(200)]


def test_a_revisit_has_the_earlier_target_and_nothing_to_write() -> None:
    revisits = Revisits(batches, 1.0, 0)
    first, again, third = (revisits(n) for n in range(3))
    assert first.segments.shape == (1, 1, 5)
    assert again.segments.shape == (1, 0, 5)
    assert again.target.tolist() == first.target.tolist() != third.target.tolist()
    assert again.labels.tolist() == first.labels.tolist()


def test_every_process_revisits_what_it_wrote_itself() -> None:
    revisits = Revisits(batches, 0.9, 0, processes=3)
    # A resumed run asks for late numbers first.
    late = revisits.earlier(59)
    plan = [revisits.earlier(n) for n in range(60)]
    assert plan[59] == late
    assert all(earlier % 3 == n % 3 for n, earlier in enumerate(plan) if earlier is not None)
    assert not any(plan[:3])
