"""Opening a session: over a model with an empty memory, or from a state file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from byheart.methods import build, defaults, find, pretrained
from byheart.model.backbone import Backbone
from byheart.model.loading import DEFAULT, locate, open_tokenizer
from byheart.protocol import state_file
from byheart.protocol.checkpoint import is_learned, load_pretrained, read_card
from byheart.session.session import Session
from byheart.text.encoder import ChatEncoder, Tokenizer


def load(
    model: str | Backbone = DEFAULT,
    *,
    method: str = "full",
    dtype: str = "auto",
    device: str = "auto",
    encoder: ChatEncoder | Tokenizer | None = None,
    trained: bool = True,
    **options: Any,
) -> Session:
    """A session with an empty memory over a model.

    Args:
        model: an alias (``smollm2``), a hub id, a local folder, a GGUF file, or an opened Backbone.
        method: how the memory is made, see ``byheart.methods.BUILT_IN``; or a folder that ``save_pretrained`` wrote,
            with its learned parts and options.
        encoder: an opened one, or a tokenizer; the model's own without it.
        trained: use the learned parts that come with byheart, where there are some for this model and these options.
        options: of the method.

    Raises ModelError, UnknownNameError, UsageError, CheckpointError or StateMismatchError.
    """
    learned = locate(method) if is_learned(method) else ""
    card: dict[str, Any] = read_card(learned) if learned else {"method": method, "options": {}}
    known = defaults(find(card["method"]))
    backbone = model if isinstance(model, Backbone) else Backbone.open(locate(model), dtype=dtype, device=device)
    folder = pretrained.find(method, backbone.fingerprint, options) if trained and not learned else None
    card = read_card(folder) if folder is not None else card
    own = _encoder(backbone, encoder)
    # Methods that know what stands around a text have an option for it.
    around = {name: tokens for name, tokens in own.template_tokens().items() if name in known}
    made = build(card["method"], backbone, **{**around, **card["options"], **options})
    if learned or folder is not None:
        load_pretrained(made, learned or str(folder))
    return Session(backbone, own, made, learned=learned)


def _encoder(backbone: Backbone, given: ChatEncoder | Tokenizer | None) -> ChatEncoder:
    if isinstance(given, ChatEncoder):
        return given
    tokenizer = given if given is not None else open_tokenizer(backbone.source)
    return ChatEncoder(tokenizer, model_stops=backbone.stop_tokens)


def open_state(
    path: str | Path,
    *,
    model: str | Backbone = "",
    dtype: str = "auto",
    device: str = "auto",
    encoder: ChatEncoder | Tokenizer | None = None,
) -> Session:
    """A session that continues from a saved memory, over the model that the file names. Raises StateError, ModelError.

    Args:
        model: where the same model is now, if not where the file says; or an opened Backbone.
        dtype: ``auto`` is the one that the file was made in.
        encoder: as for ``load``.
    """
    header = state_file.load_header(Path(path))
    session = load(
        model or header.model,
        method=header.learned or header.method,
        dtype=header.dtype if dtype == "auto" else dtype,
        device=device,
        encoder=encoder,
        **header.options,
    )
    session.load(path)
    return session
