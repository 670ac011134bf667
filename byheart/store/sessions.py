"""Sessions of named memories, wherever their files are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byheart.errors import StoreError, UnknownNameError, UsageError
from byheart.protocol import header_file
from byheart.protocol.state import Header

if TYPE_CHECKING:
    from byheart.model.backbone import Backbone
    from byheart.session.session import Session


class SessionStore(ABC):
    """Memories by name that sessions continue, wherever their files are kept."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether something has been saved under ``name``. Raises StoreError for what cannot be a name."""

    @abstractmethod
    def existing(self, name: str) -> Path:
        """Where a memory's state file is. Raises StoreError where there is none, with the nearest name."""

    def open(
        self,
        name: str,
        *,
        new: bool = False,
        model: str | Backbone | None = None,
        method: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Session:
        """A session that continues a memory.

        Args:
            new: where there is no such memory, begin an empty one; it exists once it is saved.
            model, method, options: of a new memory, as for ``session.load``; an old one must have been made with them.
                An opened Backbone serves any number of memories: a model is then opened once in a process.
            progress: of a new memory whose model is calibrated first, as for ``session.load``.

        Raises StoreError, StateError, ModelError or UsageError.
        """
        path = None if new and not self.exists(name) else self.existing(name)
        how = {"model": model, "dtype": dtype, "device": device, "progress": progress}
        return _open(name, path, method=method, options=options, **how)


def _open(name: str, path: Path | None, *, method: str | None, options: dict[str, Any], **how: Any) -> Session:
    """A session that continues the memory in a file, or begins one where there is none.

    Args:
        how: ``model``, ``dtype``, ``device`` and ``progress``, as for ``session.load``.

    Raises StateError, ModelError or UsageError.
    """
    # Names are kept and listed without PyTorch, which takes seconds to import.
    from byheart.session import opening

    if path is None:
        chosen = {choice: value for choice, value in {"method": method, **how}.items() if value is not None}
        return opening.load(**chosen, **options)
    header = header_file.load_header(path)
    # Learned parts may have moved: where they are now is not how the memory was made.
    learned = opening.folder_of(method) if header.learned and method else ""
    _require_agreement(name, header, None if learned else method, options)
    where = {choice: how[choice] for choice in ("dtype", "device")}
    return opening.open_state(path, model=how["model"] or "", method=learned, **where)


def catch_up(name: str, path: Path | None, session: Session) -> None:
    """Take over what another writer has saved. Raises StoreError where the memory was forgotten, StateError."""
    if path is not None:
        if header_file.load_hash(path) != session.file_hash:
            session.load(path)
    elif session.file_hash:
        raise StoreError(f"Memory '{name}' was forgotten while it was in use; write the text into a new one.")


def _require_agreement(name: str, header: Header, method: str | None, options: dict[str, Any]) -> None:
    """Raise UsageError for a choice that is not how the memory was made. The model is compared by its weights later."""
    recorded = {"method": header.learned or header.method, **header.options}
    if options.keys() - recorded.keys():
        # Methods are looked up here, since listing needs none of them, nor PyTorch.
        from byheart.methods import find
        from byheart.protocol.method import with_defaults

        recorded |= with_defaults(find(header.method), header.options)
    for choice, value in {"method": method, **options}.items():
        if choice not in recorded:
            raise UnknownNameError(f"option of {header.method}", choice, recorded.keys() - {"method"})
        if value not in (None, recorded[choice]):
            raise UsageError(
                f"Memory '{name}' was made with {choice} {recorded[choice]!r}, not {value!r}; "
                "leave that out, or write under another name."
            )
