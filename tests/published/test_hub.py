"""Released folders by their names on the hub: its cache is made by hand, and nothing is asked of a network."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from tokenizers.processors import TemplateProcessing

from byheart import Session
from byheart.cli import main
from byheart.errors import CheckpointError
from byheart.model.loading import open_tokenizer
from byheart.published import ccm, hub, memoryllm, mplus
from byheart.published.hub import find_folder, name_of
from byheart.text.encoder import ChatEncoder
from tests.conftest import tiny_tokenizer
from tests.samples import ROOT

GOLDEN = ROOT / "tests" / "golden"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which cannot be reached."""
    folder = tmp_path / "hub"
    folder.mkdir()
    local = partial(snapshot_download, cache_dir=folder, local_files_only=True)
    monkeypatch.setattr(hub, "snapshot_download", local)
    return folder


def put(cache: Path, name: str, folder: Path, inside: str = "") -> Path:
    """A copy of a folder as the cache holds one: links to blobs."""
    repo = cache / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT / inside
    for path in (snapshot, repo / "blobs", repo / "refs"):
        path.mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for file in folder.iterdir():
        blob = repo / "blobs" / f"{file.name}-blob"
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(blob)
    return snapshot


# The released settings have this field, of which a later transformers gives notice; byheart itself does not use it.
@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
@pytest.mark.parametrize("folder", ["memoryllm_7b_tiny", "memoryllm_7b_interpolated_tiny", "memoryllm_8b_tiny"])
def test_a_memoryllm_of_the_hub_is_opened_and_asked(folder: str, cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "whole"
    shutil.copytree(GOLDEN / folder, source)
    words = tiny_tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    words.save_pretrained(source)
    put(cache, "authors/memoryllm", source)
    pool = memoryllm("authors/memoryllm", dtype="float32", device="cpu")
    encoder = ChatEncoder(open_tokenizer(pool.backbone.source), model_stops=pool.backbone.stop_tokens)
    session = Session(pool.backbone, encoder, pool)
    session.write("The cat is called Muck.")
    assert isinstance(session.ask("Who?", max_tokens=3), str)
    # The published code gives no text its BOS: the pool's first slot stands for it.
    plain = encoder.tokenizer("The cat is called Muck.", add_special_tokens=False).input_ids
    assert encoder.start
    expected = pool.write(pool.init(), torch.tensor([plain]))
    assert all(torch.equal(session.state[name], tensor) for name, tensor in expected.items())
    asked = session.prompt("Who?").tolist()
    assert encoder.start[0] not in asked
    assert encoder.question("Who?", continues=False).tolist() == [*encoder.start, *asked]
    # What it is contrasted with is the plain model, which begins as it always does.
    assert session.prompt("Who?", alone=True).tolist() == [*encoder.start, *asked]


def test_an_mplus_of_the_hub_is_opened(cache: Path) -> None:
    source = GOLDEN / "mplus_tiny"
    put(cache, "authors/mplus", source)
    here, there = (mplus(where, dtype="float32", device="cpu") for where in (source, "authors/mplus"))
    assert torch.equal(here.long_hidden, there.long_hidden)
    with pytest.raises(CheckpointError, match="There is no folder 'nobody/mplus'"):
        mplus("nobody/mplus")


def test_a_ccm_adapter_of_the_hub_is_known_by_its_folder(cache: Path) -> None:
    golden = GOLDEN / "ccm_concat_recur_tiny"
    here = ccm(golden / "adapter", base=golden / "base", merge="concat_recur", dtype="float32")
    name = f"llama-7b-concat_recur-ntok{here.tokens}"
    put(cache, "mirror/ccm", golden / "adapter", inside=name)
    there = ccm(f"mirror/ccm/{name}", base=golden / "base", dtype="float32")
    assert (there.merge, there.recurrent) == ("concat", True)
    assert torch.equal(there.embeddings, here.embeddings)
    assert name_of(f"mirror/ccm/{name}@main") == name


def test_what_is_not_in_the_cache_is_said_in_one_line(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("nobody/nothing", "nobody/nothing/inside@v1"):
        with pytest.raises(CheckpointError, match=f"There is no folder '{name}', and it could not be fetched") as error:
            memoryllm(name)
        assert "\n" not in str(error.value)
    with pytest.raises(SystemExit):
        main(["import", "memoryllm", "nobody/nothing", "out"])
    assert "Go online, or give a folder that holds a copy" in capsys.readouterr().err


def test_a_folder_that_is_here_is_taken_before_the_hub(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own/pool").mkdir(parents=True)
    assert find_folder("own/pool") == Path("own/pool")
    for path in ("/a/b", "./a/b", "~/a"):
        assert find_folder(path) == Path(path).expanduser()
    assert name_of("own/pool") == "pool"
    assert name_of("owner/name") == "name"


def test_weights_are_fetched_in_one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def fetch(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert find_folder("owner/name") == tmp_path
    assert asked == [["*.json", "*.model", "*.txt", "*.jinja"], ["*.safetensors"]]
