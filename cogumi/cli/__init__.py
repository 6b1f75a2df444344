"""The ``cogumi`` command."""

from cogumi.cli.app import main

__all__ = ["main"]
