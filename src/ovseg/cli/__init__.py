"""The command line. `main` is its only entry point."""

from ovseg.cli.main import main

__all__ = ["main"]
