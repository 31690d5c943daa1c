"""Entry point of the command line, for Trainer verbs (LightningCLI) and plain commands alike."""

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
    "fit": "train proposals or adapt CLIP",
    "validate": "score a stage on its validation data",
    "test": "score a segmenter on a benchmark",
    "sweep": "score a grid of ensemble weights and mask thresholds in one pass",
    "mine": "mine region-text pairs from images and captions",
    "segment": "segment images into your own words",
}
COMMANDS = {
    "toy": "write scenes of the embedded toy world in COCO's layout",
    "bundle": "join trained proposals and an adapted CLIP into a segmenter",
    "data": "check every file of a benchmark: ovseg data check NAME --root DIR",
    "pairs": "inspect mined pairs: ovseg pairs stats DIR, ovseg pairs show DIR --out page.html",
    "import": "turn a released OVSeg checkpoint into a segmenter",
}


def main(args: Sequence[str] | None = None) -> None:
    """Run one verb.

    Args:
        args: arguments after `ovseg`; by default those of the process.

    Raises:
        SystemExit: with code 2 after one sentence about unusable input, 130 after Ctrl-C and 143 after SIGTERM (as in
            shells), or with the verb's own code.
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
    if words[0] == "predict":
        _refuse(f"`predict` is called `segment` here; run: {shlex.join(['ovseg', 'segment', *words[1:]])}")
    if words[0] not in TRAINER_VERBS and words[0] not in COMMANDS:
        _refuse(f"there is no verb {words[0]!r}; choose from {', '.join([*TRAINER_VERBS, *COMMANDS])} (ovseg --help)")
    from jsonargparse import ArgumentError

    from ovseg.cli.refusals import one_sentence
    from ovseg.structures import InputError
    from ovseg.whole_file import DISK_FULL

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
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning turns the interrupt into an exit
            _stopped(words, end.__context__)
        raise
    except Exception as error:
        refusal = _refusal(error, (InputError, ArgumentError))
        if isinstance(error, OSError) and error.filename and not debug:  # no permission, no space, a file for a folder
            _refuse(f"{error.filename} cannot be used ({error.strerror}); check the path and the free disk space")
        if isinstance(error, OSError) and error.errno in DISK_FULL and not debug:  # while a log is written, for example
            _refuse(f"a file cannot be written ({error.strerror}); free disk space, and rerun the same command")
        if debug or refusal is None:
            raise
        if isinstance(refusal, ArgumentError):
            _refuse(one_sentence(refusal, words, _options(words[0])))
        # an error from a worker process starts with that process's traceback
        _refuse(" ".join(str(refusal).split("InputError: ")[-1].split()))


def run_trainer_verb(words: list[str]) -> OVSegCLI:
    """Build Trainer, model and data from flags and configs, and run the verb."""
    from ovseg.cli.lightning import OVSegCLI

    return OVSegCLI.launch(words)


def _stopped(words: list[str], interrupt: KeyboardInterrupt) -> NoReturn:
    """Say how to resume, in the first process only, and exit with 128 plus the signal's number."""
    number = getattr(interrupt, "number", signal.SIGINT)
    advice = "nothing was kept; rerun the same command to start over"
    if words[0] in ("mine", "segment"):
        advice = "it resumes when you rerun the same command"
    if words[0] == "fit":
        rest = re.sub(r" --ckpt_path[ =](\S+|'[^']*')", "", shlex.join(words))
        advice = f"to resume: ovseg {rest} --ckpt_path last"
    lightning = sys.modules.get("lightning.pytorch.utilities")
    if not lightning or getattr(lightning.rank_zero_only, "rank", 0) == 0:
        print(f"ovseg: stopped by {signal.Signals(number).name}; {advice}", file=sys.stderr)
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
            "`ovseg VERB --help` lists the flags of a verb, `--print_config` prints the configuration it would run,",
            "and `--debug` shows the traceback of an error.",
        ]
    )


def _options(verb: str) -> list[str]:
    """Return the flags of a verb that do not depend on the model or the data."""
    if verb in COMMANDS:
        from ovseg.cli.commands import COMMANDS as FUNCTIONS

        return list(signature(FUNCTIONS[verb]).parameters)
    from lightning import Trainer

    from ovseg.cli.trainer import OVSegTrainer

    trainer = [f"trainer.{name}" for name in (*signature(Trainer).parameters, "compile")]
    own = [name for name in signature(getattr(OVSegTrainer, verb)).parameters if name not in ("self", "datamodule")]
    own += ["images", "vocabulary", "fast"] if verb == "segment" else []
    return ["config", "print_config", "seed_everything", "trainer", "data", "model", *trainer, *own]


def _refusal(error: BaseException | None, kinds: tuple[type[Exception], ...]) -> BaseException | None:
    """Return the user's mistake behind an error that jsonargparse may have wrapped, or None if the error is a bug."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or error.__context__
    return error


def _refuse(sentence: str) -> NoReturn:
    print(f"ovseg: {sentence}", file=sys.stderr)
    raise SystemExit(2)
