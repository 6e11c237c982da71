"""The command `fastadv`: one module a command, and `dispatch`, which runs them."""

from fastadv.cli.dispatch import main

__all__ = ["main"]
