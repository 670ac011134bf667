"""How much at once."""

from __future__ import annotations

import pytest

from byheart.serving.http.failures import Refusal
from byheart.serving.http.limits import Budget, RateLimit


def test_requests_come_back_at_their_rate_and_never_more_than_ten_seconds_of_them() -> None:
    now = [0.0]
    limit = RateLimit(60, clock=lambda: now[0])
    for _ in range(10):
        limit.take("alice")
    with pytest.raises(Refusal, match="More than 60 requests a minute") as refused:
        limit.take("alice")
    assert refused.value.retry_after == 1.0
    limit.take("bob")
    now[0] = 1.0
    limit.take("alice")
    now[0] = 1000.0
    for _ in range(10):
        limit.take("alice")
    with pytest.raises(Refusal):
        limit.take("alice")


def test_no_rate_is_no_bound() -> None:
    limit = RateLimit(0, clock=lambda: 0.0)
    for _ in range(1000):
        limit.take("alice")


def test_what_a_request_held_is_let_go_of_when_it_ends() -> None:
    budget = Budget(100)
    with budget.holding("a") as held:
        held.add(50)
        with pytest.raises(Refusal, match="Other requests fill the server"):
            held.add(1)
        assert budget.held == 50
    assert budget.held == 0


def test_no_tenant_holds_what_another_needs() -> None:
    budget = Budget(100)
    with budget.holding("a") as first, budget.holding("a") as second, budget.holding("b") as other:
        first.add(30)
        second.add(20)
        with pytest.raises(Refusal):
            second.add(1)
        other.add(25)
        with pytest.raises(Refusal):
            other.add(1)
