"""``byheart serve``: memories and models over HTTP, for any OpenAI client."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from byheart.cli import options, streams, terminal
from byheart.errors import UsageError

_EXTRA = ("obstore", "prometheus_client", "sqlalchemy", "starlette", "uvicorn")
_WHERE = "Where it listens"
_KEPT = "What it keeps"
_ALLOWED = "What it allows"

_LISTENING = options.group(
    _WHERE,
    host=options.option(str, "127.0.0.1", "Address to listen on; 0.0.0.0 for every one of this machine."),
    port=options.option(int, 8321, "Port to listen on; 0 for a free one."),
    cors=options.option(
        list[str] | None, None, "Origin of a web page that may use the server, or *; repeatable.", metavar="ORIGIN"
    ),
    allow_host=options.option(
        list[str] | None,
        None,
        "Name that the server is reached by, beside localhost; repeatable. Any, where it listens on other addresses.",
        metavar="NAME",
    ),
)
_KEEPING = options.group(
    _KEPT,
    store=options.option(
        str | None, None, "Catalogue: sqlite:///PATH or postgresql+psycopg://...; else in --home.", metavar="URL"
    ),
    objects=options.option(
        str | None, None, "State files: a folder, s3://, gs:// or az://; else in --home.", metavar="URL"
    ),
    max_resident=options.option(
        str, "2GiB", "Bytes of memories that are kept ready to be read, such as 500MiB.", metavar="BYTES"
    ),
    max_decoded=options.option(
        str,
        "4GiB",
        "Bytes of disk for evicted memories, decoded, so that they are soon ready again; 0 for none.",
        metavar="BYTES",
    ),
)
_ALLOWING = options.group(
    _ALLOWED,
    api_keys=options.option(
        Path | None, None, "File of hashed keys, a line of JSON each; else keys.jsonl in --home.", metavar="FILE"
    ),
    no_auth=options.option(bool, False, "No key is needed; only where no other machine reaches the server."),
    allow_method=options.option(
        list[str] | None,
        None,
        "Method that memories may be made with, beside the quick ones; repeatable. It may keep a model busy for hours.",
        metavar="METHOD",
    ),
    rate_limit=options.option(int, 0, "Requests a minute of one tenant; 0 is no bound."),
    quota_memories=options.option(int | None, None, "Memories of one tenant, at most."),
    quota_bytes=options.option(str | None, None, "Bytes of one tenant's memories, at most.", metavar="BYTES"),
    queue=options.option(int, 64, "Requests that may wait for the model; more are told to come back."),
    batch=options.option(int, 8, "Answers that are made at once."),
    log_requests=options.option(bool, False, "A line for each request on standard error, without content."),
)
Model = Annotated[
    list[str] | None,
    typer.Option(
        "--model", "-m", metavar="[NAME=]MODEL", help="Alias, hub id, folder or .gguf file to serve; repeatable."
    ),
]
AddKey = Annotated[
    str | None,
    typer.Option("--add-key", metavar="TENANT", help="Make a key for this tenant, show it once, and serve nothing."),
]


@options.takes(_LISTENING, _KEEPING, _ALLOWING, options.WHERE, {"home": (options.Home, None)})
def serve(model: Model = None, add_key: AddKey = None, **choices: Any) -> None:
    """Serve models and memories over HTTP, to any OpenAI client and as a web page."""
    _require_extra()
    from byheart.serving.http.accounts import make_key
    from byheart.serving.service import Choices, Service

    if choices.pop("log_requests"):
        streams.show_info("byheart.access")
    chosen = Choices(**_parse(model, choices))
    if add_key is not None:
        terminal.say(make_key(chosen.keys, add_key))
        return
    with terminal.progressing("opening", "models"):
        service = Service(chosen)
    for line in service.greeting:
        terminal.note(line)
    service.run(lambda: terminal.note("Ready; Ctrl-C stops it."))


def _parse(models: Sequence[str] | None, choices: dict[str, Any]) -> dict[str, Any]:
    """The choices as the library takes them. Raises UsageError."""
    from byheart.methods import find
    from byheart.methods.budget import parse_bytes
    from byheart.serving.http.running import is_loopback
    from byheart.serving.http.settings import LOOPBACK, QUICK_METHODS, Settings
    from byheart.store.folder import Store
    from byheart.store.values import Quota

    quota = choices.pop("quota_bytes")
    names = tuple(name.lower() for name in choices.pop("allow_host") or ())
    hosts = (*LOOPBACK, *names) if is_loopback(choices["host"]) or names else ()
    methods = tuple(find(name).name for name in choices.pop("allow_method") or ())
    settings = Settings(
        hosts=hosts,
        methods=(*QUICK_METHODS, *methods),
        quota=Quota(choices.pop("quota_memories"), parse_bytes(quota) if quota else None),
        cors=tuple(choices.pop("cors") or ()),
        requests_per_minute=choices.pop("rate_limit"),
    )
    parsed = {"settings": settings, "max_resident": parse_bytes(choices.pop("max_resident"))}
    decoded = choices.pop("max_decoded")
    parsed["max_decoded"] = 0 if decoded == "0" else parse_bytes(decoded)
    parsed |= {"home": Store(choices.pop("home")).home, **choices}
    return parsed if not models else {**parsed, "models": parse_models(models)}


def parse_models(models: Sequence[str]) -> dict[str, str]:
    """``NAME=MODEL`` or a model that has its own name. Raises UsageError for two of one name."""
    pairs = [text.partition("=") for text in models]
    named = [(name, model) if equals else (_name(name), name) for name, equals, model in pairs]
    found = dict(named)
    if len(found) < len(named) or not all(found) or not all(found.values()):
        raise UsageError("Each --model is NAME=MODEL, or a model; no two of them have one name.")
    return found


def _name(model: str) -> str:
    """What a model is called where nobody says: a folder or a file by its own name, anything else as it is typed."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def _require_extra() -> None:
    """Raise UsageError where the packages of a server are not installed."""
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f'A server needs {", ".join(missing)}: pip install "byheart[serve]".')
