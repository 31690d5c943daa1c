"""The command line: one door for Trainer verbs (LightningCLI) and for plain commands."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, NoReturn

from ovseg import __version__
from ovseg.stopping import stoppable

if TYPE_CHECKING:
    from ovseg.cli.lightning import OVSegCLI

TRAINER_VERBS = {
    "fit": "train the proposals or adapt CLIP",
    "validate": "score a stage on its validation data",
    "test": "score a segmenter on a benchmark",
    "sweep": "score a grid of ensemble weights and mask thresholds in one pass",
    "predict": "the same as segment",
    "mine": "mine region-text pairs from images and captions",
    "segment": "segment images into words of your own",
}
COMMANDS = {
    "toy": "write scenes of the embedded toy world, in the layout of COCO",
    "bundle": "join trained proposals and an adapted CLIP into a segmenter",
    "data": "check every file of a benchmark: ovseg data check NAME --root DIR",
    "pairs": "look at mined pairs: ovseg pairs stats DIR, ovseg pairs show DIR --out page.html",
    "import": "make a segmenter from a checkpoint of the released OVSeg",
}


def main(args: Sequence[str] | None = None) -> None:
    """Run one verb.

    Args:
        args: words after `ovseg`; those of the process where not given.

    Raises:
        SystemExit: 2 after one sentence about unusable input; 130 after Ctrl-C and 143 after SIGTERM, as shells have
            it; or as the verb ends.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return
    if words[0] == "--version":
        print(f"ovseg {__version__}")
        return
    if words[0] not in TRAINER_VERBS and words[0] not in COMMANDS:
        _refuse(f"there is no verb {words[0]!r}; choose from {', '.join([*TRAINER_VERBS, *COMMANDS])} (ovseg --help)")
    from jsonargparse import ArgumentError

    from ovseg.cli.refusals import one_sentence
    from ovseg.structures import InputError

    try:
        with stoppable():
            if words[0] in COMMANDS:
                from ovseg.cli.commands import run

                run(words)
            else:
                run_trainer_verb(words)
    except KeyboardInterrupt as interrupt:
        _stopped(words, interrupt)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # what Lightning makes of it
            _stopped(words, end.__context__)
        raise
    except Exception as error:
        refusal = _refusal(error, (InputError, ArgumentError))
        if isinstance(error, OSError) and error.filename and not debug:  # no permission, no space, a file for a folder
            _refuse(f"{error.filename} cannot be used ({error.strerror}); check the path and the room on the disk")
        if debug or refusal is None:
            raise
        if isinstance(refusal, ArgumentError):
            _refuse(one_sentence(str(refusal), words[0], _options(words[0])))
        # the last part, since an error from a worker process has that process's traceback before it
        _refuse(" ".join(str(refusal).split("InputError: ")[-1].split()))


def run_trainer_verb(words: list[str]) -> OVSegCLI:
    """Build Trainer, model and data from flags and configs, and run the verb."""
    from ovseg.cli.lightning import OVSegCLI

    return OVSegCLI.launch(["segment", *words[1:]] if words[0] == "predict" else words)


def _stopped(words: list[str], interrupt: KeyboardInterrupt) -> NoReturn:
    """Say how to go on, in the first of several processes, and exit as shells expect it of a signal."""
    number = getattr(interrupt, "number", signal.SIGINT)
    again = "the same command goes on after what is finished" if words[0] in ("mine", "segment", "predict") else ""
    if words[0] == "fit":
        rest = re.sub(r" --ckpt_path[ =](\S+|'[^']*')", "", shlex.join(words))
        again = f"to go on: ovseg {rest} --ckpt_path last"
    lightning = sys.modules.get("lightning.pytorch.utilities")
    if not lightning or getattr(lightning.rank_zero_only, "rank", 0) == 0:
        text = again or "nothing of it is kept, run the same command again"
        print(f"ovseg: stopped by {signal.Signals(number).name}; {text}", file=sys.stderr)
    raise SystemExit(128 + number)


def _usage() -> str:
    rows = [f"  {verb:<10}{text}" for verb, text in {**TRAINER_VERBS, **COMMANDS}.items()]
    return "\n".join(
        [
            "usage: ovseg VERB [--config FILE] [--KEY VALUE …]",
            "",
            "Open-vocabulary semantic segmentation with mask-adapted CLIP.",
            "",
            *rows,
            "",
            "`ovseg VERB --help` lists the flags of a verb, `--print_config` the configuration it would run,",
            "`--debug` shows where an error comes from.",
        ]
    )


def _options(verb: str) -> list[str]:
    """What a verb takes, as far as it does not depend on the model and the data."""
    if verb in COMMANDS:
        from ovseg.cli.commands import COMMANDS as FUNCTIONS

        return list(signature(FUNCTIONS[verb]).parameters)
    from ovseg.cli.trainer import OVSegTrainer

    trainer = [f"trainer.{name}" for name in signature(OVSegTrainer).parameters]
    own = [name for name in signature(getattr(OVSegTrainer, verb)).parameters if name not in ("self", "datamodule")]
    own += ["images", "vocabulary"] if verb == "segment" else []
    return ["config", "print_config", "seed_everything", "trainer", "data", *trainer, *own]


def _refusal(error: BaseException | None, kinds: tuple[type[Exception], ...]) -> BaseException | None:
    """The user's mistake behind an error, which jsonargparse may have wrapped; None if it is a bug of ours."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or error.__context__
    return error


def _refuse(sentence: str) -> None:
    print(f"ovseg: {sentence}", file=sys.stderr)
    raise SystemExit(2)
