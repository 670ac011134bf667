"""The memories of a server, from Python and for the commands."""

from byheart.serving.client.client import Client

__all__ = ["Client"]
