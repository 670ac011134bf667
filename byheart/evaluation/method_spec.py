"""A method to measure, as it is typed: its name, options, decoding, control, model and bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from byheart.errors import UnknownNameError, UsageError
from byheart.evaluation.metrics import CONTROLS
from byheart.evaluation.task import Item, Task
from byheart.generation.decoding import Decoding
from byheart.methods import find
from byheart.methods.budget import options_for, parse_bytes
from byheart.protocol.chat_frame import ChatFrame
from byheart.protocol.grouping import group
from byheart.session.opening import load
from byheart.session.session import Session
from byheart.text.encoder import ChatEncoder

DECODING_OPTIONS = {option.name for option in fields(Decoding)}
_OF_MEASURING = {"control", "model"}
_FORM = 'NAME or NAME:key=value;key=value, such as "window:sinks=1;recent=15"'


class MethodSpec(NamedTuple):
    """A method to measure: its name or the folder of a trained one, and its options, those of decoding among them."""

    name: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, spec: str, place: int = 0, places: int = 1) -> MethodSpec:
        """Read ``NAME:key=value;key=value``; of several values, ``4/16/64``, the one of this place. Raises UsageError.

        A value is JSON where it can be.
        """
        name, _, rest = spec.partition(":")
        if "=" not in rest or Path(spec).exists():
            return cls(spec, {})
        pairs = [pair.partition("=") for pair in rest.split(";")]
        if not name or not all(key and value for key, _, value in pairs):
            raise UsageError(f"A method is given as {_FORM}; it is '{spec}'.")
        options: dict[str, Any] = {}
        for key, _, text in pairs:
            # A folder's path has slashes of its own.
            values = [text] if key == "model" else text.split("/")
            if len(values) not in (1, places):
                raise UsageError(f"{key} of '{spec}' has {len(values)} values for {places} parts of the task.")
            options[key.replace("-", "_")] = _parse_value(values[place if len(values) > 1 else 0])
        return cls(name, options)


@dataclass(frozen=True)
class Candidate:
    """A method as it was asked for: its session, how its answers are decoded, and the bytes it may keep; 0 is any.

    ``control`` says that it is asked without the item's text: after ``nothing`` was written, or after the text of
    another item, ``other``. What it reaches then is style or knowledge, not memory. ``name`` and ``options`` are the
    method's, as given; those that fit the bytes are chosen for each item's texts.
    """

    spec: str
    session: Session
    decoding: Mapping[str, Any]
    budget: int = 0
    control: str = ""
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, spec: str, opened: Session, *, tokens: int | Sequence[int] = 0, place: int = 0, places: int = 1
    ) -> Candidate:
        """``NAME:key=value@64KiB``: a key of ``Decoding`` says how to decode, others are the method's options.

        ``control=nothing`` or ``control=other`` is neither, see ``Candidate``; nor is ``model=FOLDER``, which the
        caller opens. Raises UnknownNameError for another control, and what making a method raises.

        Args:
            opened: a session of the model to measure on.
            tokens: of the longest item's texts; options that are not given are chosen so that they fit the bytes after
                ``@``. Raises BudgetError where they cannot.
            place: of the values of an option that has several, see ``MethodSpec.of``.
        """
        plain, budget = split_budget(spec)
        method = MethodSpec.of(plain, place, places)
        decoding = {key: value for key, value in method.options.items() if key in DECODING_OPTIONS}
        others = DECODING_OPTIONS | _OF_MEASURING
        options = {key: value for key, value in method.options.items() if key not in others}
        control = str(method.options.get("control", ""))
        if control not in ("", *CONTROLS):
            raise UnknownNameError("control", control, list(CONTROLS))
        chosen = options_for(method.name, opened.backbone, budget, tokens, given=options) if budget and tokens else {}
        session = load(opened.backbone, method=method.name, encoder=opened.encoder, **chosen, **options)
        return cls(spec, session, decoding, budget, control, method.name, options)

    def session_for(self, item: Item) -> Session:
        """The session whose memory is made for an item: as large as fits its texts into the bytes.

        Raises BudgetError.
        """
        opened = self.session
        texts = text_lengths(item, self.name, opened.encoder) if self.budget else []
        if not texts:
            return opened
        chosen = options_for(self.name, opened.backbone, self.budget, texts, given=self.options)
        if chosen.items() <= opened.header.options.items():
            return opened
        return load(opened.backbone, method=self.name, encoder=opened.encoder, **chosen, **self.options)

    def decoding_for(self, task: Task, max_tokens: int | None = None) -> Decoding:
        """How a task's answers are decoded, a question's own ``max_tokens`` before the task's. Raises UsageError."""
        if task.asks != "words" and self.decoding:
            raise UsageError(
                f"{task.name} measures likelihoods: '{self.spec}' has no {', '.join(self.decoding)} there."
            )
        return Decoding(**{"max_tokens": max_tokens or task.max_tokens, **self.decoding})


def text_lengths(item: Item, method: str, encoder: ChatEncoder) -> list[int]:
    """Tokens of each text of an item as a method is given them, without what the chat template puts around them."""
    as_turn = item.use_chat_template and find(method).text_format == "turn"
    around = encoder.template_tokens()
    frame, lengths = ChatFrame(around["opening"], around["receipt"]), []
    for place, text in enumerate(item.texts):
        if not isinstance(text, str):
            lengths.append(len(text))
            continue
        tokens = encoder.document(text, first=not place, as_turn=as_turn)
        template = frame.template_around(tokens[None], first=not place) if as_turn else ()
        lengths.append(len(tokens) - sum(template))
    return [length for length in lengths if length]


def split_budget(spec: str) -> tuple[str, int]:
    """A spec without its number of bytes, and that number; 0 where none is given. Raises UsageError."""
    plain, at, size = spec.rpartition("@")
    return (plain, parse_bytes(size)) if at and not Path(spec).exists() else (spec, 0)


def with_budget(spec: str, budget: str | None) -> str:
    """A spec with a number of bytes, unless it has its own; ``NAME@`` has none."""
    if budget is None:
        return spec
    return spec.removesuffix("@") if "@" in spec else f"{spec}@{budget}"


def with_controls(specs: Sequence[str], controls: Sequence[str]) -> list[str]:
    """Specs, each followed by its controls; but ``nothing``, which has none, and what is a control already.

    Raises UnknownNameError, and UsageError for a folder with a colon in its name.
    """
    if unknown := [control for control in controls if control not in CONTROLS]:
        raise UnknownNameError("control", unknown[0], list(CONTROLS))
    found = []
    for spec in specs:
        has_none = re.split("[:@]", spec)[0] == "nothing" or without_control(spec) != spec
        found += [spec, *(_with_control(spec, control) for control in (() if has_none else controls))]
    return list(dict.fromkeys(found))


def _with_control(spec: str, control: str) -> str:
    plain, _ = split_budget(spec)
    if ":" in plain and Path(plain).exists():
        raise UsageError(f"'{plain}' can have no control: what follows its colon reads as options. Rename the folder.")
    return f"{plain}{';' if ':' in plain else ':'}control={control}{spec[len(plain) :]}"


def without_control(spec: str) -> str:
    """The spec of the method whose control this is; any other spec as it is."""
    return re.sub(r"(:)control=[^;@]*;|[:;]control=[^;@]*", r"\1", spec)


def group_by_state(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates that keep the same and differ in decoding or control alone, together; in the order they came."""

    def state(candidate: Candidate) -> str:
        header = candidate.session.header
        options = sorted(header.options.items()), sorted(candidate.options.items())
        kept = (header.method, options, header.adapter, candidate.budget)
        return repr((*kept, id(candidate.session.backbone)))

    return list(group(candidates, state).values())


def split_specs(specs: str) -> list[str]:
    """The specs of ``A,B:key=value``, split at commas outside brackets."""
    return [spec.strip() for spec in re.split(r",(?![^\[]*\])", specs) if spec.strip()]


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
