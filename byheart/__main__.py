"""The command ``byheart``, also as ``python -m byheart``: ready for Ctrl-C before anything else is imported."""

from __future__ import annotations

import os
import signal
from types import FrameType

_LINE = b"byheart: Interrupted.\n"
# A bar of progress hides the cursor.
_CLEAN = b"\r\x1b[2K\x1b[?25h"


def main() -> None:
    """Run the command line of this process and exit with its code."""
    signal.signal(signal.SIGINT, interrupt)
    try:
        from byheart.cli import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        # The exit is decided; an interrupt from here on would only break it off with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but leave at once while a module is imported: cut off half-way, it breaks others.

    What a process leaves that ends so is swept later, as after a kill.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, _CLEAN + _LINE if os.isatty(2) else _LINE)
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
