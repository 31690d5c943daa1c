"""LightningCLI with OVSeg's verbs, run folders and configs. Only Trainer verbs import it."""

from __future__ import annotations

import logging
import shlex
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import jsonargparse
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from omegaconf.errors import OmegaConfBaseException

from ovseg.cli.config_files import check_configs
from ovseg.cli.hardware import set_hardware_defaults
from ovseg.cli.packaged import find_packaged, notice
from ovseg.cli.parser import StrictArgumentParser
from ovseg.cli.refusals import unresolved
from ovseg.cli.run_folder import SaveVerbConfig, check_results, check_start, run_folder, starting_checkpoint
from ovseg.cli.trainer import OVSegTrainer
from ovseg.cli.wiring import add_callbacks, add_loggers
from ovseg.data.resumable import ResumableDataModule
from ovseg.structures import InputError

WRITING_VERBS = ("mine", "segment", "sweep")
SEGMENT_DEFAULTS = ["--model", "ovseg.tasks.SegmentationTask", "--data", "ovseg.data.ImagesDataModule"]
SEGMENT_DEFAULTS += ["--trainer.devices", "1"]  # with more, every process would load the networks, even for one photo
SEGMENT_SHORTHANDS = {"--model": "--model.segmenter", "--images": "--data.images", "--vocabulary": "--data.vocabulary"}


class OVSegCLI(LightningCLI):
    """Trainer verbs for any task and any datamodule. A run lives in `trainer.default_root_dir`."""

    @classmethod
    def launch(cls, words: list[str]) -> OVSegCLI:
        """Parse a command line, build Trainer, data and model, and run the verb.

        Args:
            words: the verb and its flags.

        Raises:
            jsonargparse.ArgumentError, InputError: the flags or files cannot be used. Nothing has been written yet.
        """
        verb, command = words[0], " ".join(shlex.join(["ovseg", *words]).split())
        words, packaged = find_packaged(words)
        if packaged:
            rank_zero_only(print)(notice(packaged), file=sys.stderr)
        check_configs(words)
        jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=False)
        _silence_irrelevant_warnings()
        options: dict[str, Any] = {"parser_mode": "omegaconf+", "exit_on_error": False}
        try:
            return cls(
                model_class=LightningModule,
                subclass_mode_model=True,
                save_config_callback=SaveVerbConfig,
                save_config_kwargs={"config_filename": f"{verb}.yaml", "command": command},
                trainer_class=OVSegTrainer,
                seed_everything_default=0,
                parser_class=StrictArgumentParser,
                parser_kwargs={"prog": "ovseg", **options, **{name: dict(options) for name in cls.subcommands()}},
                auto_configure_optimizers=False,
                args=_expand_segment_flags(words) if verb == "segment" else words,
            )
        except MisconfigurationException as error:  # flags that do not suit the machine
            raise InputError(str(error)) from error
        except OmegaConfBaseException as error:
            raise InputError(unresolved(error, words)) from error

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add Trainer, data and model in the order they are built: files are checked before networks are made."""
        parser.add_lightning_class_args(OVSegTrainer, "trainer")
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
        parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's verbs, with `predict` replaced by the verbs that write its results."""
        verbs = {**LightningCLI.subcommands(), **{verb: {"model", "datamodule"} for verb in WRITING_VERBS}}
        del verbs["predict"]
        return verbs

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line, then check data, run folder and checkpoint before anything is built."""
        super().parse_arguments(parser, args)
        self.command = self.save_config_kwargs["command"]
        verb = self.config["subcommand"]
        _check_data(verb, self.config[verb])
        _check_seed(self.config[verb]["seed_everything"])
        self.folder = run_folder(verb, self.config[verb])
        if "ckpt_path" in self.config[verb]:
            self.config[verb]["ckpt_path"] = starting_checkpoint(verb, self.folder, self.config[verb]["ckpt_path"])
            check_start(verb, self.folder, self.config[verb])
        check_results(verb, self.folder, self.command)
        if self.config[verb].get("weights_only", True) is None:  # otherwise Lightning would run code from a checkpoint
            self.config[verb]["weights_only"] = True

    def before_fit(self) -> None:
        """Divide the batch among processes; refuse one that cannot be divided before other processes wait for it."""
        if isinstance(self.datamodule, ResumableDataModule):
            self.datamodule.divide_batch(self.trainer.world_size, self.trainer.accumulate_grad_batches)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the loggers, callbacks, accelerator and precision of the verb."""
        verb = str(self.subcommand)
        trainer = self.config_init[verb]["trainer"]
        trainer["default_root_dir"] = str(self.folder)
        add_loggers(trainer, self.folder, enabled=verb not in WRITING_VERBS)
        set_hardware_defaults(trainer, verb)
        add_callbacks(trainer, verb, self.folder, self.config[verb].get("ckpt_path"), self.command)
        if verb == "test":
            self.config_init["test"]["verbose"] = False  # the report has a better table
        try:
            return super().instantiate_trainer(**kwargs)
        except (ImportError, ValueError) as error:
            raise InputError(f"the Trainer refuses its flags: {error}") from error


def _silence_irrelevant_warnings() -> None:
    """Hide warnings about intended behaviour and about problems that ovseg reports itself."""
    for message in (
        "LightningCLI's args parameter",  # `main` may be called with arguments other than sys.argv
        ".*LeafSpec",  # deprecated in torch, but Lightning still uses it
        ".*exists and is not empty",  # `check_start` decides this
        ".*across ranks is zero",  # no validation images, or none left
        ".*callbacks used to create the checkpoint",  # only `fit` has them
    ):
        warnings.filterwarnings("ignore", message=message)
    for part in ("pytorch.utilities.rank_zero", "fabric.utilities.seed"):  # unused devices, and the seed in the config
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)


def _expand_segment_flags(words: list[str]) -> list[str]:
    """Translate `ovseg segment --model toy --images … --vocabulary …` into flags of the task and the datamodule.

    `--fast` appends `/fast` to the model, which names its fast region encoder.
    """
    verb, *rest = words
    if "--fast" in rest:
        rest = [word for word in rest if word != "--fast"]
        rest = _with_fast(rest)
    flags = [word.partition("=") for word in rest]
    rest = [SEGMENT_SHORTHANDS.get(flag, flag) + equals + value for flag, equals, value in flags]
    return [verb, *([] if {"--config", "-c"} & set(rest) else SEGMENT_DEFAULTS), *rest]


def _with_fast(words: list[str]) -> list[str]:
    """Append `/fast` to the value of `--model`.

    Raises:
        InputError: there is no `--model`.
    """
    flags = ("--model", "--model.segmenter")
    for index, word in enumerate(words):
        if word in flags and index + 1 < len(words):
            return [*words[: index + 1], _fast(words[index + 1]), *words[index + 2 :]]
        if word.startswith(tuple(f"{flag}=" for flag in flags)):
            return [*words[:index], _fast(word), *words[index + 1 :]]
    raise InputError("--fast needs --model, the segmenter whose fast region encoder is used; add --model FOLDER or toy")


def _fast(model: str) -> str:
    return f"{model.rstrip('/').removesuffix('/fast')}/fast"


def _check_seed(seed: bool | int | None) -> None:
    """Refuse a seed that NumPy and torch do not both take."""
    if seed is not None and not 0 <= seed < 2**32:
        raise InputError(f"seed_everything is {seed}; give a number from 0 to {2**32 - 1}")


def _check_data(verb: str, config: Mapping[str, Any]) -> None:
    """Refuse a run without data."""
    if not config.get("data"):
        raise InputError(
            f"{verb} needs data; give --data a file such as conf/data/ade20k_150.yaml, or a --config that has it"
        )
