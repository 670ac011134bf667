"""``python -m byheart`` is the command ``byheart``."""

from byheart.cli import main

main()
