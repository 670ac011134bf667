"""Released pools opened with rounded rotary positions, which what is imported keeps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from byheart.errors import UsageError
from byheart.methods.latent_pool import LatentPool
from byheart.model.backbone import Backbone
from byheart.protocol.checkpoint import load_pretrained
from byheart.published import memoryllm, mplus
from tests.conftest import Run, tiny_tokenizer
from tests.published.test_golden import GOLDEN, logits

# The released settings have this field, of which a later transformers gives notice; byheart itself does not use it.
pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")


def test_rotary_positions_that_are_rounded_stay_so_in_what_is_imported(run: Run, tmp_path: Path) -> None:
    released = tmp_path / "released"
    shutil.copytree(GOLDEN / "memoryllm_7b_interpolated_tiny", released)
    tiny_tokenizer().save_pretrained(released)
    out = tmp_path / "own"
    assert run("import", "memoryllm", released, out, "--dtype", "float32", "--rotary", "float16").code == 0
    expected = load_file(released / "expected.safetensors")
    prompt, before = expected["prompt_ids"], expected["logits_before"]
    opened = LatentPool(Backbone.open(str(out / "model"), dtype="float32"), slots=8, blocks=4, own_start=True)
    load_pretrained(opened, out)
    pools = [memoryllm(released, dtype="float32", device="cpu", rotary="float16"), opened]
    with torch.no_grad():
        found = [logits(pool.backbone, prompt, [pool.read(pool.init())]) for pool in pools]
    assert torch.equal(*found)
    # Rounded by a thousandth at 33 positions: near to what the published code computes in float32, and not the same.
    assert 1e-4 < (found[0] - before).abs().max() < 1e-1


def test_the_8b_and_mplus_round_frequencies_alone() -> None:
    for read, name in ((memoryllm, "memoryllm_8b_tiny"), (mplus, "mplus_tiny")):
        method = read(GOLDEN / name, dtype="float32", device="cpu", rotary="bfloat16")
        rounding = method.backbone.anatomy.rounding
        assert rounding is not None
        assert (rounding.dtype, rounding.whole) == (torch.bfloat16, False)


def test_other_types_are_refused() -> None:
    with pytest.raises(UsageError, match="rotary must be one of float32, float16, bfloat16; it is 'half'"):
        memoryllm(GOLDEN / "memoryllm_7b_tiny", rotary="half")
