"""The argument parser of Trainer verbs: LightningCLI's, without abbreviations."""

from __future__ import annotations

import re
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from ovseg.cli.refusals import OwnedArguments


class StrictArgumentParser(OwnedArguments, LightningArgumentParser):
    """Rejects abbreviated flags, which would let typos pass, and accepts `--model.clip.pretrained null`.

    jsonargparse (4.53) passes a nested value to the parser of the inner class as text and writes null as `None` there.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Parse arguments, with `None` read as null."""
        if isinstance(args, list):
            args = [re.sub(r"^(--[^=]+)=None$", r"\1=null", word) for word in args]
        return super().parse_args(args, *rest, **options)
