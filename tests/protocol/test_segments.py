"""Token ids split into segments, and compared from their start."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from byheart.errors import InputError
from byheart.protocol.segments import common_prefix_length, split_segments


@given(tokens=st.integers(1, 300), shortest=st.integers(1, 40), more=st.integers(0, 60), batch=st.integers(1, 3))
def test_pieces_are_the_text_and_no_longer_than_asked(tokens: int, shortest: int, more: int, batch: int) -> None:
    longest = shortest + more
    text = torch.arange(batch * tokens).view(batch, tokens)
    pieces = list(split_segments(text, longest=longest, shortest=shortest))
    lengths = [piece.shape[1] for piece in pieces]
    assert torch.equal(torch.cat(pieces, dim=1), text)
    assert max(lengths) <= longest
    assert min(lengths) >= 1
    # Two pieces of the shortest length and more always fit where the longest is twice that.
    if longest >= 2 * shortest:
        assert min(lengths) >= min(shortest, tokens)
    # As few pieces as there can be.
    assert len(lengths) == -(-tokens // longest)
    # Cutting what was cut changes nothing.
    assert all(
        list(map(torch.Tensor.tolist, split_segments(p, longest=longest, shortest=shortest))) == [p.tolist()]
        for p in pieces
    )


def test_a_short_rest_shares_with_the_piece_before_it() -> None:
    def lengths(tokens: int) -> list[int]:
        return [piece.shape[1] for piece in split_segments(torch.zeros(1, tokens).long(), longest=10, shortest=4)]

    assert [lengths(n) for n in (3, 10, 11, 13, 14, 21, 24)] == [
        [3],
        [10],
        [6, 5],
        [7, 6],
        [10, 4],
        [10, 6, 5],
        [10, 10, 4],
    ]


def test_an_empty_text_cannot_be_split() -> None:
    with pytest.raises(InputError, match="nothing to write: the text is empty"):
        next(split_segments(torch.zeros(1, 0).long(), longest=10))


@pytest.mark.parametrize(("longest", "shortest"), [(1, 1), (2, 2), (3, 5)])
def test_limits_that_leave_no_choice_still_make_progress(longest: int, shortest: int) -> None:
    text = torch.arange(11)[None]
    pieces = list(split_segments(text, longest=longest, shortest=shortest))
    assert torch.equal(torch.cat(pieces, dim=1), text)
    assert all(1 <= piece.shape[1] <= longest for piece in pieces)


def test_segments_are_views_of_the_text() -> None:
    text = torch.zeros(2, 7).long()
    assert all(
        piece.untyped_storage().data_ptr() == text.untyped_storage().data_ptr()
        for piece in split_segments(text, longest=3)
    )


@given(first=st.text(alphabet="ab", max_size=6), second=st.text(alphabet="ab", max_size=6))
def test_the_common_prefix_is_the_longest_one(first: str, second: str) -> None:
    expected = max(n for n in range(7) if first[:n] == second[:n] and n <= min(len(first), len(second)))
    assert common_prefix_length([*map(ord, first)], [*map(ord, second)]) == expected


def test_sequences_that_differ_at_once_have_nothing_in_common() -> None:
    assert common_prefix_length([1, 2, 3], [4, 2, 3]) == 0
    assert common_prefix_length([], [1]) == common_prefix_length([1], []) == 0
    assert common_prefix_length([1, 2], [1, 2, 3]) == 2
