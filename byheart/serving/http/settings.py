"""What a server allows: bounds on what it is sent, on time, and on who may ask."""

from __future__ import annotations

from dataclasses import dataclass

from byheart.errors import UsageError, require_not_negative, require_positive
from byheart.store.values import Quota

QUICK_METHODS = (
    *("compact", "full", "retrieval", "window", "every-kth", "mean-pooled"),
    *("key-norm", "attention-score", "repeat-score", "nothing"),
)
"""Methods whose writes take what reading the text takes, and whose states are never larger than the text's own."""
_NO_QUOTA = Quota()
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Settings:
    """The bounds of a server. Bytes are bytes, times are seconds.

    Args:
        hosts: the names that a request's Host header may have, without a port; any where there are none. On loopback
            they keep a web page elsewhere from reaching the server under a name of its own (DNS rebinding).
        cors: origins of web pages that may use the server from a browser, ``*`` for all; none by default.
        quota: of each tenant.
        methods: that a memory may be made with. Others optimise while they write, or hold what an option says: with
            these, one request can keep a model busy for hours, or fill the memory of the machine.
        body_bytes: of a question.
        text_bytes: of texts to be written, and of a file that holds one.
        state_bytes: of a state file that is imported.
        held_bytes: of all bodies that are in memory at one time.
        uploaded_bytes: of all state files that are on their way at one time; a tenant's own are at most half of that.
        requests_per_minute: of one tenant; 0 is no bound.
        answers: that one request may ask for.
        default_tokens: of an answer, where a request does not say.
        body_seconds: within which a body comes, or else at ``body_rate`` bytes a second and more.
        header_seconds: within which a connection sends the head of its first request.
        stall_seconds: after which a client is dropped that reads nothing of what it is sent.
        drain_seconds: that running answers are given when the server stops.
        sweep_seconds: between two looks for what has expired.
    """

    hosts: tuple[str, ...] = LOOPBACK
    cors: tuple[str, ...] = ()
    quota: Quota = _NO_QUOTA
    methods: tuple[str, ...] = QUICK_METHODS
    body_bytes: int = 4 << 20
    text_bytes: int = 32 << 20
    state_bytes: int = 1 << 30
    held_bytes: int = 256 << 20
    uploaded_bytes: int = 8 << 30
    requests_per_minute: int = 0
    answers: int = 16
    default_tokens: int = 1024
    body_seconds: float = 20.0
    body_rate: int = 16 << 10
    header_seconds: float = 10.0
    stall_seconds: float = 60.0
    drain_seconds: float = 30.0
    sweep_seconds: float = 600.0

    def __post_init__(self) -> None:
        fields = vars(self)
        require_not_negative(**{name: fields[name] for name in ("requests_per_minute", "drain_seconds")})
        bounds = {name: value for name, value in fields.items() if name.endswith(("_bytes", "_seconds", "_rate"))}
        require_positive(**{name: value for name, value in bounds.items() if name != "drain_seconds"})
        for origin in self.cors:
            if origin != "*" and "://" not in origin:
                raise UsageError(f"An origin is like https://chat.example.org, or * for all; it is '{origin}'.")
