from __future__ import annotations

import pytest
import torch

from byheart.model.lower_layers import input_of, run_lower
from byheart.model.reading import Reading
from tests.samples import ALL_FAMILIES, backbone, tokens


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("index", [0, 1])
def test_lower_layers_run_alone(index: int, family: str) -> None:
    own, text = backbone(family), tokens(12, seed=4)
    with input_of(own, index) as taken:
        whole = own.prefill(text)
    with own.reading([Reading()]) as cache:
        hidden = run_lower(own, text, index, cache)
        assert cache.get_seq_length() == (text.shape[1] if index else 0)
    torch.testing.assert_close(hidden, taken[0])
    assert len(taken) == 1
    if index:
        torch.testing.assert_close(cache.layers[0].keys, whole.keys[0])
    assert not own.layers[index]._forward_pre_hooks
