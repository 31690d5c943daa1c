"""LightningCLI with OVSeg's verbs, run folders and configs; imported only when a Trainer verb runs."""

from __future__ import annotations

import logging
import re
import shlex
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import jsonargparse
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import Precision

from ovseg.callbacks import BestCheckpoint, LastCheckpoint, ReportWriter, StepSeed, StopAfterStep
from ovseg.cli.run_folder import SaveVerbConfig, check_results, check_start, run_folder, starting_checkpoint
from ovseg.cli.trainer import OVSegTrainer
from ovseg.data.resumable import ResumableDataModule
from ovseg.structures import InputError

WRITING_VERBS = ("mine", "segment", "sweep")
HALF_VERBS = ("test", *WRITING_VERBS)  # which on a GPU need no full precision, unless the user asks for it
SEGMENT_DEFAULTS = ["--model", "ovseg.tasks.SegmentationTask", "--data", "ovseg.data.ImagesDataModule"]
SEGMENT_DEFAULTS += ["--trainer.devices", "1"]  # every process would load the networks, be it for one photo
SEGMENT_SHORTHANDS = {"--model": "--model.segmenter", "--images": "--data.images", "--vocabulary": "--data.vocabulary"}


class StrictArgumentParser(LightningArgumentParser):
    """Takes no abbreviations, which would let a typo pass, and lets `--model.clip.pretrained null` through.

    jsonargparse (4.53) hands a nested value to the parser of the inner class as text, and writes null as `None` there.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        if isinstance(args, list):
            args = [re.sub(r"^(--[^=]+)=None$", r"\1=null", word) for word in args]
        return super().parse_args(args, *rest, **options)


class OVSegCLI(LightningCLI):
    """Trainer verbs over any task and any datamodule; a run lives in `trainer.default_root_dir`."""

    @classmethod
    def launch(cls, words: list[str]) -> OVSegCLI:
        """Parse the words of a command line, build everything and run.

        Raises:
            jsonargparse.ArgumentError, InputError: before any work, for words and files that cannot be used.
        """
        verb, command = words[0], " ".join(shlex.join(["ovseg", *words]).split())
        jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=False)
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # words may differ from sys.argv
        warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning's own use of what torch renamed
        warnings.filterwarnings("ignore", message=".*exists and is not empty")  # see check_start
        warnings.filterwarnings("ignore", message=".*across ranks is zero")  # no images to validate on, or none left
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint")  # `fit` alone has them
        for part in ("pytorch.utilities.rank_zero", "fabric.utilities.seed"):  # lists of absent devices; in the config
            logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
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
                args=_segment_words(words) if verb == "segment" else words,
            )
        except MisconfigurationException as error:  # what Lightning says to a flag that does not suit the machine
            raise InputError(str(error)) from error

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Trainer, data, model: what comes first is built first, and files are looked for before networks are made."""
        parser.add_lightning_class_args(OVSegTrainer, "trainer")
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
        parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), **{verb: {"model", "datamodule"} for verb in WRITING_VERBS}}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        self.command = self.save_config_kwargs["command"]
        verb = self.config["subcommand"]
        _check_data(verb, self.config[verb])
        self.folder = run_folder(verb, self.config[verb])
        if "ckpt_path" in self.config[verb]:
            self.config[verb]["ckpt_path"] = starting_checkpoint(verb, self.folder, self.config[verb]["ckpt_path"])
            check_start(verb, self.folder, self.config[verb])
        check_results(verb, self.folder, self.command)
        if self.config[verb].get("weights_only", True) is None:  # Lightning would execute what a checkpoint brings
            self.config[verb]["weights_only"] = True

    def before_fit(self) -> None:
        """Refuse a batch that cannot be divided, before other processes are started, which would wait for this one."""
        if isinstance(self.datamodule, ResumableDataModule):
            self.datamodule.trainer = self.trainer
            self.datamodule.batch_size()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer of the config, with the run folder's loggers and checkpoint where the config names none."""
        config = self.config_init[self.subcommand]["trainer"]
        folder = self.folder
        config["default_root_dir"] = str(folder)
        if config["logger"] is None:
            written = self.subcommand not in WRITING_VERBS
            config["logger"] = (
                [CSVLogger(folder, "csv"), TensorBoardLogger(folder, "tensorboard")] if written else False
            )
        given = config["callbacks"] or []
        callbacks = config["callbacks"] = [given] if isinstance(given, Callback) else list(given)
        if config["accelerator"] == "auto" and MPSAccelerator.is_available():
            config["accelerator"] = "cpu"  # Apple's GPUs have no double precision, in which boxes and metrics are exact
        if on_gpu(config["accelerator"]):
            torch.set_float32_matmul_precision("high")  # TF32; on a CPU it may change numbers and gains nothing
            if self.subcommand in HALF_VERBS and not names_precision(config):
                config["precision"] = half_precision()
        if self.subcommand == "fit":
            if config["enable_checkpointing"] is not False:  # beside others that the user asks for
                has_last = any(isinstance(callback, LastCheckpoint) for callback in callbacks)
                callbacks[:0] = [BestCheckpoint(folder)]
                callbacks += [] if has_last else [LastCheckpoint(folder, self.config[self.subcommand]["ckpt_path"])]
            callbacks.append(StepSeed())
            if config["logger"]:
                callbacks.append(LearningRateMonitor("step"))
        callbacks.append(StopAfterStep())
        if self.subcommand == "test":
            callbacks.append(ReportWriter(folder, self.command))
            self.config_init["test"]["verbose"] = False  # the report has a better table
        try:
            return super().instantiate_trainer(**kwargs)
        except (ImportError, ValueError) as error:
            raise InputError(f"the Trainer refuses its flags: {error}") from error


def on_gpu(accelerator: Any) -> bool:
    """Whether the Trainer will take NVIDIA's (or AMD's) GPUs."""
    if accelerator == "auto":
        return CUDAAccelerator.is_available()
    return accelerator in ("cuda", "gpu") or isinstance(accelerator, CUDAAccelerator)


def names_precision(trainer: Mapping[str, Any]) -> bool:
    """Whether the user has chosen one, by a flag, a config or a plugin."""
    plugins = trainer["plugins"] or []
    given = plugins if isinstance(plugins, list) else [plugins]
    return trainer["precision"] is not None or any(isinstance(plugin, Precision) for plugin in given)


def half_precision() -> Literal["bf16-mixed", "16-mixed"]:
    """The best that the GPU computes itself: bf16 has the range of fp32."""
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def _segment_words(words: list[str]) -> list[str]:
    """`ovseg segment --model toy --images … --vocabulary …`, put into the flags of the task and the datamodule."""
    verb, *rest = words
    flags = [word.partition("=") for word in rest]
    rest = [SEGMENT_SHORTHANDS.get(flag, flag) + equals + value for flag, equals, value in flags]
    return [verb, *([] if {"--config", "-c"} & set(rest) else SEGMENT_DEFAULTS), *rest]


def _check_data(verb: str, config: Mapping[str, Any]) -> None:
    """Refuse a run without data."""
    if not config.get("data"):
        raise InputError(
            f"{verb} needs data; give --data a file such as conf/data/ade20k_150.yaml, or a --config with it"
        )
