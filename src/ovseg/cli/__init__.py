"""The command line; `main` is its front door."""

from ovseg.cli.main import main

__all__ = ["main"]
