"""Build Hugging Face's Mask2Former and MaskFormer from config values, or load one of their checkpoints."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerModel,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerModel,
    PretrainedConfig,
)
from transformers.models.maskformer.modeling_maskformer import MaskformerMLPPredictionHead

from ovseg.checkpoint import first_line, hub_or_cache, quiet
from ovseg.models.network_values import MASK_NETWORKS, shape_of
from ovseg.models.proposals.deeplab_resnet import DeepLabResNetConfig
from ovseg.models.proposals.maskformer_init import initialise_as_released
from ovseg.structures import InputError

NETWORKS: dict[str, Any] = {
    "mask2former": (Mask2FormerForUniversalSegmentation, Mask2FormerConfig),
    "maskformer": (MaskFormerForInstanceSegmentation, MaskFormerConfig),
}

HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")

# keys in which Swin differs between transformers 4 and 5: an unused norm, and a table determined by the window
SWIN_VERSION_KEYS = re.compile(r"\.swin\.layernorm\.|\.relative_position_index$")

# class of the backbone → patterns that map key names of a classification network (Hugging Face or timm) to its own
CLASSIFIER_KEYS = {
    "MaskFormerSwinBackbone": {r"^swin\.": "model."},
    "DeepLabResNet": {r"^(?!network\.)": "network."},
}
ONLY_IN_CLASSIFIER = re.compile(r"^classifier|^network\.fc\.|num_batches_tracked$")
# norms on the outputs of the stages, and a table that only older files have
ONLY_IN_BACKBONE = re.compile(r"hidden_states_norms|relative_position_index$")


class MaskNetwork(NamedTuple):
    """A mask proposal network without its classifier."""

    model: Mask2FormerModel | MaskFormerModel
    mask_head: nn.Module | None  # MaskFormer's; Mask2Former has it inside the model
    objectness_head: nn.Linear | None  # class head over K classes and no-object (last); only objectness is read from it


def hidden_size(model: Mask2FormerModel | MaskFormerModel) -> int:
    """Return the width C of the queries."""
    decoder: Any = model.config if isinstance(model, Mask2FormerModel) else model.config.decoder_config
    size: int = decoder.hidden_dim if isinstance(model, Mask2FormerModel) else decoder.hidden_size
    return size


def build_network(values: dict[str, Any], classes: int | None = None, source: str = "`model`") -> MaskNetwork:
    """Build a network with random weights: Mask2Former initialised as by its authors, MaskFormer as by the release.

    Args:
        values: the values of a `Mask2FormerConfig`, or of a `MaskFormerConfig` including `model_type`.
        classes: number of classes K of the objectness head; no head by default.
        source: where the values come from, for the error message.

    Raises:
        InputError: the values lack a backbone, or do not describe such a network.
    """
    # without a backbone_config, HF would use its default or query the hub for a named backbone
    if not isinstance(values.get("backbone_config"), dict) or "model_type" not in values["backbone_config"]:
        examples = f"swin, resnet or {DeepLabResNetConfig.model_type}"
        raise InputError(f"the proposal network needs a backbone_config with a model_type; set it, such as {examples}")
    settings = shape_of({"model_type": "mask2former", **values}, source, MASK_NETWORKS)
    model: Mask2FormerModel | MaskFormerModel
    mask_head = None
    try:
        with quiet("transformers"):  # it warns about every backbone but Swin
            if settings.pop("model_type") == "maskformer":
                model = MaskFormerModel(MaskFormerConfig(**settings))
                initialise_as_released(model)
                mask_head = MaskformerMLPPredictionHead(
                    hidden_size(model), hidden_size(model), model.config.mask_feature_size
                )
            else:
                model = Mask2FormerModel(Mask2FormerConfig(**settings))
        objectness_head = None if classes is None else nn.Linear(hidden_size(model), classes + 1)
    except Exception as error:  # configs and modules raise many kinds for values they cannot use
        raise InputError(f"no network can be built from {source} ({first_line(error)}); correct its values") from error
    return MaskNetwork(model, mask_head, objectness_head)


def read_network(name: str) -> MaskNetwork:
    """Load a Mask2Former or MaskFormer checkpoint; its class head is only used for objectness.

    Args:
        name: a hub name, or a folder with `config.json` and `model.safetensors`.

    Raises:
        InputError: the checkpoint cannot be found or read, has another architecture, or asks for code to be run.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file() and (folder.exists() or not HUB_NAME.fullmatch(name)):
        raise InputError(
            f"no proposal network in {name}; use a .ckpt of `ovseg fit --config conf/proposals.yaml`, or a folder with "
            "the config.json and model.safetensors of a Mask2Former or MaskFormer"
        )
    try:
        with hub_or_cache(name), quiet("transformers"):
            values = PretrainedConfig.get_config_dict(name)[0]
            kind = str(values.get("model_type"))
            if kind not in NETWORKS:
                raise InputError(
                    f"{name} is not a mask proposal network (its config.json has model_type {kind}); use a "
                    "Mask2Former or MaskFormer, for example facebook/mask2former-swin-base-coco-panoptic"
                )
            network_class, config_class = NETWORKS[kind]
            settings = shape_of(values, f"the config.json of {name}", MASK_NETWORKS, strict=False)
            settings["id2label"] = values.get("id2label")  # determines the size of the class head
            network, report = network_class.from_pretrained(
                name,
                config=config_class(**settings),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"the weights of {name} hold Python objects, which ovseg never executes; use its model.safetensors"
        ) from error
    except Exception as error:  # transformers, torch and safetensors raise a dozen kinds for damaged files
        raise InputError(_load_failure("network", name, "model", error)) from error
    problems = {
        "missing": [key for key in report["missing_keys"] if not SWIN_VERSION_KEYS.search(key)],
        "unexpected": [key for key in report["unexpected_keys"] if not SWIN_VERSION_KEYS.search(key)],
        "of another shape": [key for key, *_ in report["mismatched_keys"]],
    }
    if mismatches := _summary(problems):
        raise InputError(f"the weights in {name} do not fit its config.json: {mismatches}; fetch both again")
    network.train()  # HF returns it in evaluation mode, in which Lightning would train it
    head: nn.Linear = network.class_predictor
    logging.getLogger(__name__).warning(
        "%s: its class head (%d classes) is discarded, and CLIP alone classifies its masks until you train it with "
        "`ovseg fit --config conf/proposals.yaml`",
        name,
        head.out_features - 1,
    )
    return MaskNetwork(network.model, getattr(network, "mask_embedder", None), head)


def load_backbone(encoder: nn.Module, name: str) -> None:
    """Load the weights of a classification network into a backbone.

    Args:
        encoder: the backbone.
        name: a hub name, or a folder with `config.json` and `model.safetensors`.

    Raises:
        InputError: the weights cannot be loaded, or do not fit.
    """
    config: Any = copy.copy(encoder.config)
    config.model_type = type(config).model_type  # HF sets `swin` for MaskFormer's Swin, and would rename its weights
    try:
        with hub_or_cache(name), quiet("transformers"):  # its table of keys is checked below
            pretrained, report = type(encoder).from_pretrained(  # type: ignore[attr-defined]
                name,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                key_mapping=CLASSIFIER_KEYS.get(type(encoder).__name__),
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(_load_failure("backbone", name, "backbone", error)) from error
    problems = {
        "missing": [key for key in report["missing_keys"] if not ONLY_IN_BACKBONE.search(key)],
        "unexpected": [key for key in report["unexpected_keys"] if not ONLY_IN_CLASSIFIER.search(key)],
        "of another shape": [key for key, *_ in report["mismatched_keys"]],
    }
    if mismatches := _summary(problems):
        raise InputError(
            f"the backbone weights in {name} do not fit: {mismatches}; set backbone_config to their architecture"
        )
    loaded = {key: value for key, value in pretrained.state_dict().items() if key not in report["missing_keys"]}
    encoder.load_state_dict(loaded, strict=False)


def prepare_swin(swin: Any) -> None:
    """Make HF's Swin train as its authors' implementation does, and work with DDP."""
    swin.layernorm.requires_grad_(False)  # no output passes it, but DDP waits for the gradient of every parameter
    for block in (block for stage in swin.encoder.layers for block in stage.blocks):
        # HF applies stochastic depth to attention only; add that of the MLP
        mlp = block.output if hasattr(block, "output") else block.mlp
        mlp.register_forward_hook(partial(_drop_path, block.drop_path))


def _drop_path(drop: nn.Module, mlp: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Apply stochastic depth, as a hook that keeps the names of weights and, unlike a lambda, can be copied."""
    dropped: Tensor = drop(output)
    return dropped


def _summary(problems: dict[str, list[str]]) -> str:
    """Summarise each problem by its number of keys and the first of them; empty without problems."""
    return "; ".join(f"{len(keys)} {kind} ({min(keys)}, …)" for kind, keys in problems.items() if keys)


def _load_failure(part: str, name: str, option: str, error: Exception) -> str:
    """Return the message of an `InputError` for a network or backbone that could not be loaded."""
    reason = first_line(error)
    if Path(name).is_dir():
        return f"{part} in {name} could not be loaded ({reason}); fetch its config.json and model.safetensors again"
    return (
        f"{part} {name!r} could not be loaded ({reason}); if this machine is offline, download config.json and "
        f"model.safetensors elsewhere and set `{option}` to their folder"
    )
