"""Groups by what their members have in common."""

from __future__ import annotations

from byheart.protocol.grouping import group


def test_groups_come_in_the_order_of_their_first_members() -> None:
    assert group(["bb", "a", "cc", "ddd"], len) == {2: ["bb", "cc"], 1: ["a"], 3: ["ddd"]}
    assert group([], len) == {}
