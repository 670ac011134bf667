"""Settings are written once, as fields; whatever is listed, checked or built comes from those fields."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field
from typing import Annotated, Any

import pytest

from byheart.errors import UnknownNameError, UsageError
from byheart.training.settings import Setting, build_config, flatten, list_settings


@dataclass(frozen=True)
class Bread:
    flour: Annotated[str, "Of which grain.", "GRAIN"] = "rye"
    slices: Annotated[int, "How many."] = 2
    toasted: Annotated[bool, "Whether it was in the toaster."] = False


@dataclass(frozen=True)
class Filling:
    toppings: Annotated[list[str], "In order.", "NAME"] = field(default_factory=lambda: ["cheese"])
    grams: Annotated[list[int], "Of each."] = field(default_factory=list)
    spread: Annotated[float, "Millimetres."] = 1.5


@dataclass(frozen=True)
class Meal:
    filling: Filling = field(default_factory=Filling)
    guests: Annotated[int, "At the table."] = 1


@dataclass(frozen=True)
class Menu:
    title: Annotated[str, "On top."] = "today"
    extras: dict[str, Any] = field(default_factory=dict)
    bread: Annotated[Bread, "The bread"] = field(default_factory=Bread)
    meal: Annotated[Meal, "The meal"] = field(default_factory=Meal)


NAMES = ["title", "extras", "flour", "slices", "toasted", "toppings", "grams", "spread", "guests"]


def test_settings_are_listed_in_order_with_what_their_fields_say() -> None:
    found = list_settings(Menu)
    assert list(found) == NAMES
    assert found["flour"] == Setting("flour", str, "rye", "Of which grain.", "GRAIN", "The bread")
    assert found["guests"] == Setting("guests", int, 1, "At the table.", None, "The meal")
    assert found["extras"] == Setting("extras", dict[str, Any], {})
    assert (found["title"].panel, found["toppings"].default) == (None, ["cheese"])


def test_a_section_without_a_heading_is_shown_under_that_of_its_parent() -> None:
    assert {list_settings(Menu)[name].panel for name in ("toppings", "grams", "spread")} == {"The meal"}


def test_without_values_a_config_has_its_defaults() -> None:
    assert build_config(Menu, {}) == Menu()


def test_a_list_or_table_is_not_shared_between_configs() -> None:
    first, second = build_config(Menu, {}), build_config(Menu, {})
    first.meal.filling.toppings.append("onion")
    first.extras["napkin"] = True
    assert (second.meal.filling.toppings, second.extras) == (["cheese"], {})
    assert list_settings(Menu)["toppings"].default == ["cheese"]


def test_flat_names_reach_their_sections() -> None:
    made = build_config(Menu, {"slices": 3, "spread": 2.5, "title": "now", "toppings": ["egg", "cress"]})
    assert made == Menu(title="now", bread=Bread(slices=3), meal=Meal(filling=Filling(["egg", "cress"], spread=2.5)))


@pytest.mark.parametrize(
    "values",
    [
        {"bread": {"slices": 3}, "spread": 2.5},
        {"slices": 3, "filling": {"spread": 2.5}},
        {"slices": 3, "meal": {"spread": 2.5}},
        {"bread": {"slices": 3}, "meal": {"filling": {"spread": 2.5}}},
    ],
)
def test_a_table_of_a_section_means_the_same_as_flat_names(values: dict[str, Any]) -> None:
    assert build_config(Menu, values) == build_config(Menu, {"slices": 3, "spread": 2.5})


def test_what_comes_later_wins_over_a_table() -> None:
    assert build_config(Menu, {"bread": {"slices": 3}, "slices": 4}).bread.slices == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slice": 3}, r"There is no setting 'slice'\. Did you mean 'slices'\?"),
        ({"bread": {"slice": 3}}, r"There is no setting 'slice'\. Did you mean 'slices'\?"),
        ({"bread": 3}, "There is no setting 'bread'"),
        ({"extra": {}}, r"There is no setting 'extra'\. Did you mean 'extras'\?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        build_config(Menu, values)


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [
        ("slices", "two", "a whole number; it is 'two'"),
        ("slices", 2.0, r"a whole number; it is 2\.0"),
        ("slices", True, "a whole number; it is True"),
        ("slices", None, "a whole number; it is None"),
        ("toasted", 1, "true or false; it is 1"),
        ("toasted", "yes", "true or false; it is 'yes'"),
        ("spread", "thick", "a number; it is 'thick'"),
        ("spread", True, "a number; it is True"),
        ("flour", 3, "text; it is 3"),
        ("flour", ["rye"], r"text; it is \['rye'\]"),
        ("toppings", "egg", "a list of texts; it is 'egg'"),
        ("toppings", ["egg", 2], r"a list of texts; it is \['egg', 2\]"),
        ("toppings", ("egg",), "a list of texts"),
        ("grams", [1, "2"], r"a list of whole numbers; it is \[1, '2'\]"),
        ("grams", [True], r"a list of whole numbers; it is \[True\]"),
        ("extras", ["salt"], r"a table; it is \['salt'\]"),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_it_must_be(name: str, value: Any, meaning: str) -> None:
    with pytest.raises(UsageError, match=f"{name} must be {meaning}"):
        build_config(Menu, {name: value})


def test_a_whole_number_is_a_number() -> None:
    assert build_config(Menu, {"spread": 2}).meal.filling.spread == 2


def test_an_empty_list_is_a_list_of_anything() -> None:
    made = build_config(Menu, {"grams": [], "toppings": []})
    assert (made.meal.filling.grams, made.meal.filling.toppings) == ([], [])


def test_flattening_undoes_building() -> None:
    values = {name: setting.default for name, setting in list_settings(Menu).items()}
    values |= {"guests": 4, "flour": "oat", "extras": {"salt": {"grams": 1}}}
    made = build_config(Menu, values)
    assert flatten(made) == values
    assert list(flatten(made)) == NAMES
    assert build_config(Menu, flatten(made)) == made


def test_a_table_that_is_a_setting_is_left_whole() -> None:
    """Its keys are not names of settings, even where they are spelt like one."""
    assert build_config(Menu, {"extras": {"slices": "many"}}).extras == {"slices": "many"}


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        build_config(Menu, {}).title = "later"  # type: ignore[misc]
