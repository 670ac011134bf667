"""Facts in the model's context: what is kept is the demonstrations and the fact, as the model reads them."""

from __future__ import annotations

import pytest
import torch

from byheart.errors import InputError
from byheart.methods.full import Full
from byheart.methods.ike import IKE
from byheart.protocol.fact import Fact
from byheart.testing import FIXED_FAMILIES, tiny_backbone
from tests.samples import backbone, same, tokens, written

TEXT, SHOWN = tokens(9, seed=1)[0], tokens(30, seed=2)
FACT = Fact(TEXT, 3, 7, 9, shown=SHOWN[0])


@pytest.mark.parametrize("family", ["llama", *FIXED_FAMILIES])
def test_a_fact_is_kept_among_its_demonstrations_and_a_text_alone(family: str) -> None:
    own = tiny_backbone(family)
    made, full = IKE(own, chunk_tokens=16), Full(own)
    [state] = made.write_facts([made.init()], [FACT])
    same(state, written(full, SHOWN), within=1e-4)
    [both] = made.write_facts([state], [FACT])
    same(both, written(full, SHOWN, SHOWN), within=1e-4)
    same(written(made, TEXT[None]), written(full, TEXT[None]))


def test_more_facts_than_the_model_has_positions_are_refused() -> None:
    made = IKE(backbone())
    with pytest.raises(InputError, match="write fewer facts, or give fewer demonstrations"):
        made.write_facts([made.init()], [Fact(TEXT, 3, 7, 9, shown=torch.arange(600) % 100 + 3)])
