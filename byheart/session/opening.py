"""Opening a session: over a model with an empty memory, or from a state file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from byheart.errors import StateError, UsageError
from byheart.files import keep, recall
from byheart.methods import build, defaults, find, pretrained
from byheart.model.backbone import Backbone
from byheart.model.known import find_model
from byheart.model.loading import DEFAULT, PRECISIONS, locate, open_tokenizer
from byheart.protocol import state_file
from byheart.protocol.checkpoint import is_learned, load_pretrained, read_card
from byheart.protocol.state import Header
from byheart.session.calibration import Progress, ensure_codec
from byheart.session.default_method import default_method
from byheart.session.key_moments import ensure_moments
from byheart.session.session import Session
from byheart.text.encoder import ChatEncoder, Tokenizer

_LEARNED = "methods-opened"


def load(
    model: str | Backbone = DEFAULT,
    *,
    method: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    encoder: ChatEncoder | Tokenizer | None = None,
    trained: bool = True,
    system_prompt: bool = True,
    calibrate: bool = True,
    progress: Progress | None = None,
    **options: Any,
) -> Session:
    """A session with an empty memory over a model.

    A method that codes keys and values, as the default does, needs a codec. One for the default model comes with
    byheart; any other model is calibrated at first use, once, which is logged before and takes minutes or longer.

    Args:
        model: an alias (``smollm2``), a hub id, a local folder, a GGUF file, or an opened Backbone.
        method: how the memory is made, see ``byheart.methods.BUILT_IN``; or a folder that ``save_pretrained`` wrote,
            with its learned parts and options. Without it ``compact``, or ``full`` where the model can have no codec.
        encoder: an opened one, or a tokenizer; the model's own without it.
        trained: use the learned parts that come with byheart, where there are some for this model and these options.
        system_prompt: keep what the model's chat template says of its own before a conversation. A memory that is
            made without it is opened without it.
        calibrate: make what a method needs to know of a model, where there is none yet, instead of raising UsageError.
        progress: called with the texts done and the texts in all, while the model is calibrated.
        options: of the method.

    Raises ModelError, UnknownNameError, UsageError, CheckpointError or StateMismatchError.
    """
    backbone = model if isinstance(model, Backbone) else Backbone.open(locate(model), dtype=dtype, device=device)
    method = default_method(backbone) if method is None else method
    how: dict[str, Any] = {"encoder": encoder, "system_prompt": system_prompt, "trained": trained, "progress": progress}
    how["may_calibrate"] = calibrate
    return _build(backbone, method, folder_of(method), options, **how)


def folder_of(method: str) -> str:
    """The folder of learned parts that ``method`` is, wherever the process stands; empty for a method's name."""
    return locate(method) if is_learned(method) else ""


def _build(
    backbone: Backbone,
    method: str,
    learned: str,
    options: Mapping[str, Any],
    *,
    encoder: ChatEncoder | Tokenizer | None,
    system_prompt: bool,
    trained: bool = True,
    may_calibrate: bool = True,
    progress: Progress | None = None,
    codec: str = "",
) -> Session:
    """A session with an empty memory, its method by name or from the folder ``learned``.

    Args:
        codec: the fingerprint of the one that coded the memory which the session is for.
    """
    card: dict[str, Any] = read_card(learned) if learned else {"method": method, "options": {}}
    known = defaults(find(card["method"]))
    folder = pretrained.find(method, backbone.fingerprint, options) if trained and not learned else None
    card = read_card(folder) if folder is not None else card
    own = _encoder(backbone, encoder, system_prompt)
    # Methods that know what stands around a text have an option for it.
    around = {name: tokens for name, tokens in own.template_tokens().items() if name in known}
    made = build(card["method"], backbone, **{**around, **card["options"], **options})
    # Last, since it may take long: an option that cannot be is said before.
    if made.needs_codec:
        ensure_codec(backbone, own, progress) if may_calibrate else made.use_codec(codec)
    if may_calibrate:
        ensure_moments(backbone, own, made.moment_paths, progress)
    if learned or folder is not None:
        load_pretrained(made, learned or str(folder))
    if learned:
        for fingerprint in (made.fingerprint, made.sampled_fingerprint):
            keep(_LEARNED, fingerprint, learned)
    return Session(backbone, own, made, learned=learned)


def _encoder(backbone: Backbone, given: ChatEncoder | Tokenizer | None, system_prompt: bool) -> ChatEncoder:
    if isinstance(given, ChatEncoder):
        return given
    tokenizer = given if given is not None else open_tokenizer(backbone.source)
    return ChatEncoder(tokenizer, model_stops=backbone.stop_tokens, system_prompt=system_prompt)


def open_state(
    path: str | Path,
    *,
    model: str | Backbone = "",
    method: str = "",
    dtype: str = "auto",
    device: str = "auto",
    encoder: ChatEncoder | Tokenizer | None = None,
    system_prompt: bool = True,
) -> Session:
    """A session that continues from a saved memory. Raises StateError, ModelError, CheckpointError.

    A file may come from a stranger, so no model and no folder is opened because it names one: what it was made with is
    what you give, what you have opened before, or what comes with byheart.

    Args:
        model: the model that the file was made with, or an opened Backbone.
        method: the folder with the learned parts of the method that it was made with.
        dtype: ``auto`` is the one that the file was made in.
        encoder, system_prompt: as for ``load``.
    """
    session = blank_for(
        path, model=model, method=method, dtype=dtype, device=device, encoder=encoder, system_prompt=system_prompt
    )
    session.load(path)
    return session


def blank_for(
    path: str | Path,
    *,
    model: str | Backbone,
    method: str = "",
    dtype: str = "auto",
    device: str = "auto",
    encoder: ChatEncoder | Tokenizer | None = None,
    system_prompt: bool = True,
) -> Session:
    """A session that holds nothing yet and can load this saved memory. Arguments and errors as of ``open_state``."""
    header = state_file.load_header(Path(path))
    model = model or _model_of(header, path)
    learned = folder_of(method) if method else _learned_of(header, path)
    if isinstance(model, str):
        if header.dtype not in PRECISIONS:
            raise StateError(f"'{path}' was made in precision {_quote(header.dtype)}, which byheart does not know.")
        model = Backbone.open(locate(model), dtype=header.dtype if dtype == "auto" else dtype, device=device)
    try:
        how: dict[str, Any] = {"encoder": encoder, "system_prompt": system_prompt, "may_calibrate": False}
        how["codec"] = header.adapter
        return _build(model, method or header.method, learned, header.options, **how)
    except UsageError as error:
        raise StateError(f"'{path}' cannot be opened with its method and options: {error}") from error


def _model_of(header: Header, path: str | Path) -> str:
    """What opens the model that a state was made with, as far as this user knows it. Raises StateError."""
    found = find_model(header.backbone, header.model)
    if found is None:
        raise StateError(
            f"'{path}' was made with model {_quote(header.model)}, which you have not opened yet; a file's word is not "
            "enough to open it. Say which model to open: model=... (--model ...)."
        )
    return found


def _learned_of(header: Header, path: str | Path) -> str:
    """The folder of learned parts that a state was made with; empty where byheart has them. Raises StateError."""
    folder = recall(_LEARNED, header.adapter) if header.learned else ""
    if isinstance(folder, str) and (not folder or Path(folder).is_dir()):
        return folder
    if pretrained.find(header.method, header.backbone, header.options) is None:
        raise StateError(
            f"'{path}' was made with the learned parts in {_quote(header.learned)}, which you have not opened yet; a "
            "file's word is not enough to open them. Say which folder to open: method=... (--method ...)."
        )
    return ""


def _quote(name: str) -> str:
    """A name from a file, with nothing in it that a terminal would obey."""
    return ascii(name[:200])
