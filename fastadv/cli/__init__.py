"""The command `fastadv`: one module per command, and `dispatch`, which runs them."""

from fastadv.cli.dispatch import main

__all__ = ["main"]
