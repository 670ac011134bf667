"""The table of methods: names, options, other people's packages."""

from __future__ import annotations

import inspect
import itertools
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from byheart import methods
from byheart.errors import UnknownNameError, UsageError
from byheart.methods import BUILT_IN, build, defaults, find
from byheart.model.reading import Reading
from byheart.protocol.method import Method
from byheart.protocol.state import State
from tests.conftest import Run
from tests.samples import CODED, backbone, tokens


class Diary(Method):
    """Somebody else's method: the first tokens it was given."""

    name = "diary"

    def __init__(self, backbone: Any, *, first: int = 4) -> None:
        Method.__init__(self, backbone)
        self.first = first

    def init(self) -> State:
        return {}

    def write(self, state: State, segment: Tensor) -> State:
        kept = torch.cat([state["kept"], segment], dim=1) if state else segment
        return {"kept": kept[:, : self.first]}

    def read(self, state: State) -> Reading:
        return Reading(self.backbone.prefill(state["kept"])) if state else Reading()


def offer(monkeypatch: pytest.MonkeyPatch, group: str, **objects: str) -> None:
    """Let other packages register these, name -> object, in an entry-point group."""
    points = [EntryPoint(name, value, group) for name, value in objects.items()]
    monkeypatch.setattr(methods, "entry_points", lambda *, group: [point for point in points if point.group == group])


@pytest.fixture
def _others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package's entry points."""
    here = "tests.methods.test_table"
    objects = {
        "diary": f"{here}:Diary",
        "window": f"{here}:Diary",
        "pathbook": "pathlib:Path",
        "number": f"{here}:tokens",
    }
    offer(monkeypatch, "byheart.methods", **objects)


# ---- built in ----


def test_the_table_is_by_name_and_free_of_duplicates() -> None:
    assert all(kind.name == name for name, kind in BUILT_IN.items())
    assert len(set(BUILT_IN.values())) == len(BUILT_IN)
    folder = Path(methods.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "budget"}
    assert {kind.__module__.rsplit(".", 1)[-1] for kind in BUILT_IN.values()} == files
    assert {name.replace("-", "_") for name in BUILT_IN} == files


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_a_method_is_final_and_says_what_it_does(name: str) -> None:
    kind = BUILT_IN[name]
    (base,) = kind.__bases__
    assert base.__module__.startswith("byheart.protocol.")
    assert inspect.isabstract(base)
    assert not [child for child in kind.__subclasses__() if child.__module__.startswith("byheart.")]
    assert kind.__doc__
    assert find(name) is kind
    assert isinstance(build(name, backbone()), kind)


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_defaults_are_the_options_of_a_method_without_any(name: str) -> None:
    options = {
        key: list(value) if isinstance(value, tuple) else value for key, value in defaults(BUILT_IN[name]).items()
    }
    actual = build(name, backbone()).options()
    # Which layers, and how fast they are tuned, is decided by the model where no option says it.
    for chosen in ("layers", "learning_rate"):
        actual.pop(chosen, None)
        options.pop(chosen, None)
    assert actual == options


# ---- names ----


@pytest.mark.parametrize(
    ("name", "near"), [("latent_pool", "latent-pool"), ("windw", "window"), ("ffn-lore", "ffn-lora")]
)
def test_an_unknown_name_is_answered_with_the_nearest_and_the_list(name: str, near: str) -> None:
    message = rf"There is no method '{name}'\. Did you mean '{near}'\? There are: adapter, attention-score, .*window\."
    with pytest.raises(UnknownNameError, match=message):
        find(name)
    with pytest.raises(UnknownNameError, match=message):
        build(name, backbone())


def test_a_name_like_no_other_is_answered_with_the_list() -> None:
    with pytest.raises(UnknownNameError, match=r"There is no method 'zzz'\. There are: adapter, attention-score, "):
        find("zzz")


# ---- options ----


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("latent-pool", {"slot": 3}, r"no option of latent-pool 'slot'\. Did you mean 'slots'\?"),
        ("full", {"keep": 1}, r"no option of full 'keep'\. There are: bits, chunk_tokens"),
        ("nothing", {"slots": 1}, r"no option of nothing 'slots'"),
        ("latent-pool", {"slots": "8"}, "slots of latent-pool must be a whole number, such as 64; it is '8'"),
        ("latent-pool", {"slots": 8.0}, "slots of latent-pool must be a whole number, such as 64; it is 8.0"),
        ("latent-pool", {"slots": True}, "slots of latent-pool must be a whole number, such as 64; it is True"),
        (
            "last-ffn",
            {"learning_rate": "fast"},
            "learning_rate of last-ffn must be a number, .* it is 'fast'",
        ),
        ("last-ffn", {"keep_text": 1}, "keep_text of last-ffn must be true or false, such as True; it is 1"),
        ("last-ffn", {"kl": float("nan")}, "kl of last-ffn must be a number, such as 0.1; it is nan"),
        ("last-ffn", {"clip": float("inf")}, "clip of last-ffn must be a number, .* it is inf"),
        (
            "window",
            {"recent": 1 << 70},
            "recent of window must be a whole number, such as 508; it is 1180591620717411303",
        ),
        ("ffn-lora", {"layers": 1}, r"layers of ffn-lora must be a list .* such as \(\); it is 1"),
        ("ffn-lora", {"layers": ["0"]}, r"layers of ffn-lora must be a list .* it is \['0'\]"),
        ("ffn-lora", {"layers": [1 << 70]}, r"layers of ffn-lora must be a list .* it is \[1180591"),
        ("adapter", {"linears": "q_proj"}, r"linears of adapter must be a list .* such as \(\); it is 'q_proj'"),
        ("latent-pool", {"targets": {"a": 1}}, r"targets of latent-pool must be a list .* it is \{'a': 1\}"),
        ("latent-pool", {"rank": -1}, "rank must be 1 to 32, the width of .*; it is -1"),
        ("adapter", {"rank": 10**9}, "rank must be 1 to 32, the width of .*; it is 1000000000"),
        ("ffn-lora", {"rank": 10**9}, "rank must be at most 32, the model's width; it is 1000000000"),
        ("compressed-kv", {"tokens": 10**9}, "tokens must be at most 128, the model's vocabulary; it is 1000000000"),
        ("last-ffn", {"header": [3, 128]}, "header holds token 128, and the model knows those from 0 to 127"),
        ("retrieval", {"receipt": [-1]}, "receipt holds token -1, and the model knows those from 0 to 127"),
        ("window", {"sinks": 1 << 53, "recent": 1}, "'window' would hold up to 9,007,199,254,740,993 slots; take a sm"),
        *(
            (name, {"steps": 1_000_001}, "steps must be at most 1,000,000; it is 1,000,001")
            for name in ("last-ffn", "ffn-lora", "ffn-edit", "cartridge")
        ),
        *(
            (name, {"bits": bits}, f"bits must be one of 16, 8, 4; it is {bits}")
            for name, bits in itertools.product(CODED, (0, 2, 32))
        ),
        ("full", {"bits": "8"}, "bits of full must be a whole number, such as 16; it is '8'"),
        ("nothing", {"bits": 8}, "no option of nothing 'bits'"),
        ("compressed-kv", {"bits": 8, "merge": "mean"}, "bits must be 16 where merge is 'mean', .*; it is 8"),
        ("full", {"name": "x"}, "no option of full 'name'"),
        ("compressed-kv", {"merge": 3}, "merge of compressed-kv must be a word, such as 'concat'; it is 3"),
    ],
)
def test_an_option_that_is_none_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(name, backbone(), **options)


def test_a_whole_number_is_a_number() -> None:
    assert build("latent-pool", backbone(), alpha=8).options()["alpha"] == 8


# ---- other packages ----


@pytest.mark.usefixtures("_others")
def test_a_method_of_another_package_is_found_by_its_entry_point() -> None:
    assert find("diary") is Diary
    own = backbone()
    made = build("diary", own, first=3)
    with torch.no_grad():
        state = made.write(made.init(), tokens(9))
        assert made.read(state).slots == 3
    assert made.options() == {"first": 3}


@pytest.mark.usefixtures("_others")
def test_other_packages_names_are_listed_and_cannot_take_a_built_in_one() -> None:
    assert find("window") is BUILT_IN["window"]
    with pytest.raises(
        UnknownNameError, match=r"Did you mean 'diary'\? There are: adapter, attention-score, .*, diary, "
    ):
        find("dairy")


@pytest.mark.usefixtures("_others")
@pytest.mark.parametrize("name", ["pathbook", "number"])
def test_an_entry_point_that_is_no_method_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"entry point '{name}' gives .* which is not a Method"):
        find(name)


def test_a_method_in_the_group_of_byheart_0_1_is_told_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(
        monkeypatch, "byheart.memories", diary="tests.methods.test_table:Diary", window="tests.methods.test_table:Diary"
    )
    message = (
        r"'diary' registers it in the entry-point group 'byheart\.memories'.*rename the group to 'byheart\.methods'"
    )
    with pytest.raises(UsageError, match=message):
        find("diary")
    with pytest.raises(UsageError, match=message):
        build("diary", backbone())
    assert find("window") is BUILT_IN["window"]
    with pytest.raises(UnknownNameError, match=r"There is no method 'dairy'\. There are: adapter"):
        find("dairy")


def test_the_command_lists_methods_of_other_packages_after_byheart_s_own(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = "tests.methods.test_table"
    offer(monkeypatch, "byheart.methods", diary=f"{here}:Diary", window=f"{here}:Diary")
    listed = run("methods", "--json").json
    assert [row["method"] for row in listed] == [*BUILT_IN, "diary"]
    assert listed[-1]["options"] == {"first": 4}
    assert "diary" in run("methods").out
