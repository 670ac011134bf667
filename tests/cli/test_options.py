"""How options become values: groups that commands share, settings as flags, text that is parsed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import typer

from byheart.cli import options
from byheart.errors import UsageError
from byheart.model.loading import DEFAULT
from byheart.training.config import TrainingConfig
from byheart.training.settings import list_settings
from tests.conftest import Run

GROUP = {
    **options.group(size=options.option(int, 3, "How large.")),
    **options.group("Names", name=options.option(str | None, None, "How called.", "--name", "-n")),
}


def parse(command: Any, *arguments: str) -> None:
    """Run a command of its own with these arguments."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(command)
    app([*arguments], standalone_mode=False)


# ---- groups ----


def test_a_command_takes_the_options_of_its_groups_as_choices() -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    @options.takes(GROUP, options.group(loud=options.option(bool, False, "Aloud.", "--loud")))
    def command(first: str, **choices: Any) -> None:
        seen.append((first, choices))

    parse(command, "a")
    parse(command, "a", "--size", "5", "-n", "b", "--loud")
    assert seen == [
        ("a", {"size": 3, "name": None, "loud": False}),
        ("a", {"size": 5, "name": "b", "loud": True}),
    ]


def test_a_group_stands_in_the_signature_with_its_headings() -> None:
    @options.takes(GROUP)
    def command(first: str, **choices: Any) -> None: ...

    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["first", "size", "name"]
    assert parameters["size"].default == 3
    assert parameters["name"].annotation.__metadata__[0].rich_help_panel == "Names"
    assert parameters["size"].annotation.__metadata__[0].rich_help_panel is None


def test_taking_options_twice_uses_one_group_without_changing_it() -> None:
    before = dict(GROUP)

    @options.takes(GROUP)
    def first(**choices: Any) -> None: ...

    @options.takes(GROUP)
    def second(**choices: Any) -> None: ...

    assert inspect.signature(first) == inspect.signature(second)
    assert before == GROUP


# ---- settings as flags ----


@dataclass(frozen=True)
class Kettle:
    model: Annotated[str, "Which."] = "k1"
    boil_seconds: Annotated[int, "How long."] = 90
    whistle: Annotated[bool, "Whether it is heard."] = False
    marks: Annotated[list[int], "Where.", "N,N"] = field(default_factory=lambda: [1, 2])
    teas: Annotated[list[str], "Which ones.", "TEA"] = field(default_factory=list)
    note: Annotated[str, "Anything."] = ""


@pytest.fixture
def kettle() -> Any:
    seen: list[dict[str, Any]] = []

    @options.takes(options.settings_group(list_settings(Kettle)))
    def command(**choices: Any) -> None:
        seen.append(choices)

    def typed(*arguments: str) -> dict[str, Any]:
        parse(command, *arguments)
        return {name: value for name, value in seen[-1].items() if value}

    typed.command = command  # type: ignore[attr-defined]
    typed.seen = seen  # type: ignore[attr-defined]
    return typed


def test_a_setting_that_is_not_typed_is_not_given(kettle: Any) -> None:
    assert kettle() == {}
    assert kettle.seen[-1]["whistle"] is None
    assert kettle.seen[-1].keys() == list_settings(Kettle).keys()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--boil-seconds", "5"], {"boil_seconds": 5}),
        (["-m", "k2"], {"model": "k2"}),
        (["--whistle"], {"whistle": True}),
        (["--marks", "3,4"], {"marks": "3,4"}),
        (["--teas", "mint", "--teas", "oolong"], {"teas": ["mint", "oolong"]}),
    ],
)
def test_a_setting_has_a_flag_of_its_type(kettle: Any, arguments: list[str], expected: dict[str, Any]) -> None:
    assert kettle(*arguments) == expected


def test_a_flag_can_take_back_what_a_recipe_turned_on(kettle: Any) -> None:
    kettle("--no-whistle")
    assert kettle.seen[-1]["whistle"] is False


@pytest.mark.parametrize(
    ("name", "text", "metavar"),
    [
        ("model", "Which. Default: k1.", None),
        ("marks", "Where. Default: 1,2.", "N,N"),
        ("whistle", "Whether it is heard. Default: False.", None),
        ("teas", "Which ones. Repeatable.", "TEA"),
        ("note", "Anything.", None),
    ],
)
def test_the_help_of_a_flag_is_that_of_its_setting(kettle: Any, name: str, text: str, metavar: str | None) -> None:
    info = inspect.signature(kettle.command).parameters[name].annotation.__metadata__[0]
    assert (info.help, info.metavar) == (text, metavar)


# ---- byheart train ----


def test_every_setting_of_training_is_a_flag_of_the_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    printed = run("train", "--help").out
    for name, setting in list_settings(TrainingConfig).items():
        if name not in ("method", "options"):
            assert options.spell(name) in printed
        if name != "options":
            assert setting.help in printed


def test_the_default_model_is_that_of_the_library() -> None:
    assert list_settings(TrainingConfig)["model"].default == DEFAULT


@pytest.mark.parametrize("text", ["1;2", "one", "1,,2", ""])
def test_segments_must_be_numbers(run: Run, text: str) -> None:
    ran = run("train", "--out", "nowhere", "--segments", text)
    assert ran.code == 2
    assert f"--segments takes numbers such as 1,2,4,8; it is '{text}'." in ran.err


def test_a_setting_of_another_type_is_a_usage_error(run: Run) -> None:
    ran = run("train", "--out", "nowhere", "--steps", "many")
    assert ran.code == 2
    assert "--steps" in ran.err


# ---- text that is parsed ----


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (None, {}),
        (["slots=64"], {"slots": 64}),
        (["first-slot=true"], {"first_slot": True}),
        (["layers=[0,2]"], {"layers": [0, 2]}),
        (["merge=mean"], {"merge": "mean"}),
        (["alpha=1e-2", "alpha=2"], {"alpha": 2}),
        (["label=a=b"], {"label": "a=b"}),
        (["label="], {"label": ""}),
        (["kl=NaN"], {"kl": "NaN"}),
        (["kl=-Infinity"], {"kl": "-Infinity"}),
    ],
)
def test_options_of_a_method_are_json_where_they_can_be(texts: list[str] | None, expected: dict[str, Any]) -> None:
    assert options.method_options(texts) == expected


@pytest.mark.parametrize("text", ["slots", "=64", ""])
def test_an_option_without_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--option takes key=value, such as slots=64"):
        options.method_options([text])


@pytest.mark.parametrize(
    ("dola", "expected"), [(None, None), ("high", "high"), ("low", "low"), ("4", [4]), ("4,6,8", [4, 6, 8])]
)
def test_layers_are_a_name_or_numbers(dola: str | None, expected: Any) -> None:
    assert options.parse_layers(dola) == expected


@pytest.mark.parametrize("dola", ["middle", "4,", "HIGH", ""])
def test_other_layers_are_refused(dola: str) -> None:
    with pytest.raises(UsageError, match="--dola takes high, low or layers such as 4,6,8"):
        options.parse_layers(dola)


def test_decoding_is_taken_out_of_the_choices() -> None:
    choices = {name: default for name, (_, default) in options.DECODING.items()} | {"model": "m", "dola": "1,2"}
    decoding = options.take_decoding(choices)
    assert choices == {"model": "m"}
    assert decoding.keys() == options.DECODING.keys()
    assert (decoding["dola"], decoding["max_tokens"]) == ([1, 2], 256)
