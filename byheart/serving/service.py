"""A whole server: models opened, a store, keys, and what it says about itself when it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from byheart.errors import UsageError
from byheart.model.backbone import Backbone
from byheart.model.loading import DEFAULT, locate, silence
from byheart.serving.engine import LocalEngine
from byheart.serving.http.accounts import LOCAL, Accounts, make_key
from byheart.serving.http.app import create_app
from byheart.serving.http.running import is_loopback, listen, run
from byheart.serving.http.settings import Settings
from byheart.store.folder import Store
from byheart.store.homes import CATALOGUE
from byheart.store.memories import Memories

KEYS = "keys.jsonl"
"""In the folder of the memories, where no file of keys is named."""


@dataclass(frozen=True)
class Choices:
    """What a server is told.

    Args:
        home: the folder of catalogue, state files and keys, but for those that are said to be elsewhere.
        models: name -> alias, hub id, folder or file; the server opens no others.
        max_resident: bytes of memories that are kept ready to be read.
        max_decoded: bytes of disk for evicted memories, decoded; 0 for none.
    """

    home: Path
    models: Mapping[str, str] = field(default_factory=lambda: {DEFAULT: DEFAULT})
    host: str = "127.0.0.1"
    port: int = 8321
    store: str | None = None
    objects: str | None = None
    api_keys: Path | None = None
    no_auth: bool = False
    max_resident: int = 2 << 30
    max_decoded: int = 4 << 30
    queue: int = 64
    batch: int = 8
    dtype: str = "auto"
    device: str = "auto"
    settings: Settings = field(default_factory=Settings)

    @property
    def keys(self) -> Path:
        """The file of keys."""
        return self.api_keys or self.home / KEYS

    @property
    def names(self) -> dict[str, str]:
        """What a model is called here, by what the memories that commands have made call it: where it is.

        A word without a folder may be what another server calls another model.
        """
        located = {Path(locate(source)): name for name, source in reversed([*self.models.items()])}
        found = {str(source): name for source, name in located.items() if len(source.parts) > 1}
        return {source: name for source, name in found.items() if source not in self.models}


class Service:
    """A server that is about to listen; what it has opened is closed when it has run."""

    def __init__(self, choices: Choices) -> None:
        """Open everything. Raises UsageError, ModelError, StoreError."""
        if choices.no_auth and not is_loopback(choices.host):
            raise UsageError(f"Without keys a server listens on loopback only, not on '{choices.host}'.")
        self._choices = choices
        with ExitStack() as opened:
            self._listener = opened.enter_context(listen(choices.host, choices.port))
            memories = open_memories(choices)
            opened.callback(memories.close)
            engine = open_engine(choices, memories.scratch)
            opened.callback(engine.close)
            memories.models = choices.names
            accounts = Accounts(None if choices.no_auth else choices.keys)
            # The last of all: a key that was made is shown.
            self._new_key = "" if choices.no_auth or choices.keys.exists() else make_key(choices.keys, LOCAL)
            self._app = create_app(engine, memories, accounts, choices.settings)
            self._opened = opened.pop_all()

    @property
    def greeting(self) -> list[str]:
        """What its user must know: where it is and, once, the key."""
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        lines = [f"Serving {', '.join(self._choices.models)} at http://{shown}:{port}/v1"]
        if self._new_key:
            lines.append(f"Your key, shown this once: {self._new_key}")
        elif not self._choices.no_auth:
            lines.append(f"Keys are those of {self._choices.keys}.")
        return lines

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Answer requests until the process is told to stop; ``ready`` is called when the first can be answered."""
        with self._opened:
            run(self._app, self._listener, self._choices.settings, ready)


def open_memories(choices: Choices) -> Memories:
    """The store that was chosen. Raises StoreError, and UsageError where a catalogue would hide memories."""
    waiting = [] if choices.store or (choices.home / CATALOGUE).exists() else Store(choices.home).names()
    if waiting:
        raise UsageError(
            f"'{choices.home}' has {len(waiting)} memories in files of their own; a server keeps them in a catalogue. "
            "`byheart migrate` takes them over; or name another folder with --home."
        )
    if choices.store is None and choices.objects is None:
        return Memories.at(choices.home)
    catalogue = choices.store or f"sqlite:///{choices.home.resolve() / CATALOGUE}"
    return Memories(catalogue, choices.objects or str(choices.home / "objects"))


def open_engine(choices: Choices, scratch: Path) -> LocalEngine:
    """The models, opened once; ``scratch`` is a folder of this process alone. Raises ModelError, UsageError.

    PyTorch gives each thread that computes a team of threads, for as long as it lives. Where the teams have more
    threads than there are processors, OpenMP no longer lets them wait for one another by spinning, and a token takes
    half as long again. So what opens the models is a thread that ends: from then on, only the engine's own computes.
    """
    with ThreadPoolExecutor(1) as opening:
        return opening.submit(_open_engine, choices, scratch).result()


def _open_engine(choices: Choices, scratch: Path) -> LocalEngine:
    silence()
    models = {
        name: Backbone.open(locate(model), dtype=choices.dtype, device=choices.device)
        for name, model in choices.models.items()
    }
    return LocalEngine(
        models,
        max_resident=choices.max_resident,
        queue=choices.queue,
        batch=choices.batch,
        decoded=scratch,
        max_decoded=choices.max_decoded,
    )
