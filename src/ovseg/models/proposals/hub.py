"""Hugging Face's mask networks: built from values, or read from a checkpoint of theirs."""

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
from ovseg.models.proposals.maskformer_start import start_as_released
from ovseg.structures import InputError

NETWORKS: dict[str, Any] = {
    "mask2former": (Mask2FormerForUniversalSegmentation, Mask2FormerConfig),
    "maskformer": (MaskFormerForInstanceSegmentation, MaskFormerConfig),
}

HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")

# of a Swin saved by transformers 4: no norm after its last stage, which no output passes; a table made of its window
SWIN_OF_OLD = re.compile(r"\.swin\.layernorm\.|\.relative_position_index$")

# backbone → what turns the names of a classification network's weights, Hugging Face's or timm's, into its own
CLASSIFIER_NAMES = {"MaskFormerSwinBackbone": {r"^swin\.": "model."}, "DeepLabResNet": {r"^(?!network\.)": "network."}}
CLASSIFIER_ALONE = re.compile(r"^classifier|^network\.fc\.|num_batches_tracked$")
# the norms on the outputs of its stages, and a table that older files have and newer ones have not
BACKBONE_ALONE = re.compile(r"hidden_states_norms|relative_position_index$")


class MaskNetwork(NamedTuple):
    """The parts of a network that answer, without any class."""

    model: Mask2FormerModel | MaskFormerModel
    mask_head: nn.Module | None  # MaskFormer's; Mask2Former's is inside the model
    objectness_head: nn.Linear | None  # (C,) to K + 1 logits, no-object last: of a network trained on K classes


def hidden_size(model: Mask2FormerModel | MaskFormerModel) -> int:
    """Width C of the queries."""
    decoder: Any = model.config if isinstance(model, Mask2FormerModel) else model.config.decoder_config
    size: int = decoder.hidden_dim if isinstance(model, Mask2FormerModel) else decoder.hidden_size
    return size


def build_network(values: dict[str, Any], classes: int | None = None, source: str = "`model`") -> MaskNetwork:
    """A network with random weights: a Mask2Former's as its authors draw them, a MaskFormer's as the release does.

    Args:
        values: of a `Mask2FormerConfig`, or of a `MaskFormerConfig` with its `model_type`.
        classes: K of the objectness head; none where not given.
        source: where the values are from, for a refusal.

    Raises:
        InputError: the values name no backbone, or are not those of such a network.
    """
    # without a backbone_config HF would take its default, or query the hub for a named backbone
    if not isinstance(values.get("backbone_config"), dict) or "model_type" not in values["backbone_config"]:
        known = f"swin, resnet or {DeepLabResNetConfig.model_type}"
        raise InputError(f"the proposal network needs a backbone_config with a model_type, for example {known}")
    settings = shape_of({"model_type": "mask2former", **values}, source, MASK_NETWORKS)
    model: Mask2FormerModel | MaskFormerModel
    mask_head = None
    try:
        with quiet("transformers"):  # it warns about every backbone but Swin; others are meant here
            if settings.pop("model_type") == "maskformer":
                model = MaskFormerModel(MaskFormerConfig(**settings))
                start_as_released(model)
                mask_head = MaskformerMLPPredictionHead(
                    hidden_size(model), hidden_size(model), model.config.mask_feature_size
                )
            else:
                model = Mask2FormerModel(Mask2FormerConfig(**settings))
        objectness_head = None if classes is None else nn.Linear(hidden_size(model), classes + 1)
    except Exception as error:  # a config checks its values by errors of its own, and the modules by any
        raise InputError(f"the values of {source} make no network ({first_line(error)}); correct them") from error
    return MaskNetwork(model, mask_head, objectness_head)


def read_network(name: str) -> MaskNetwork:
    """The network of a Mask2Former or MaskFormer checkpoint; of its class head remains what is no object.

    Args:
        name: on the hub, or a folder with `config.json` and `model.safetensors`.

    Raises:
        InputError: it cannot be found or read, is of another architecture, or would have to execute something.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file() and (folder.exists() or not HUB_NAME.fullmatch(name)):
        raise InputError(
            f"no proposal network in {name}; give a .ckpt of `ovseg fit --config conf/proposals.yaml`, or a folder "
            "with the config.json and model.safetensors of a Mask2Former or MaskFormer"
        )
    try:
        with hub_or_cache(name), quiet("transformers"):
            values = PretrainedConfig.get_config_dict(name)[0]
            kind = str(values.get("model_type"))
            if kind not in NETWORKS:
                raise InputError(
                    f"{name} is no network that proposes masks (its config.json has model_type {kind}); give a "
                    "Mask2Former or MaskFormer, for example facebook/mask2former-swin-base-coco-panoptic"
                )
            network_class, config_class = NETWORKS[kind]
            settings = shape_of(values, f"the config.json of {name}", MASK_NETWORKS, strict=False)
            settings["id2label"] = values.get("id2label")  # as many classes as its head has
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
            f"the weights of {name} hold Python objects, which are never executed here; bring its model.safetensors"
        ) from error
    except Exception as error:  # transformers, torch and safetensors raise a dozen kinds for damaged files
        raise InputError(_not_loaded("network", name, "model", error)) from error
    problems = {
        "missing": [key for key in report["missing_keys"] if not SWIN_OF_OLD.search(key)],
        "unexpected": [key for key in report["unexpected_keys"] if not SWIN_OF_OLD.search(key)],
        "of another shape": [key for key, *_ in report["mismatched_keys"]],
    }
    if found := _first_of(problems):
        raise InputError(f"the weights in {name} do not fit its config.json: {found}; fetch both again from one place")
    network.train()  # HF hands it over in eval mode, and Lightning would train it so
    head: nn.Linear = network.class_predictor
    logging.getLogger(__name__).warning(
        "%s: its %d classes are dropped and CLIP alone names its masks, until it is trained with CLIP's texts by "
        "`ovseg fit --config conf/proposals.yaml`",
        name,
        head.out_features - 1,
    )
    return MaskNetwork(network.model, getattr(network, "mask_embedder", None), head)


def load_backbone(encoder: nn.Module, name: str) -> None:
    """Give a backbone the weights of a classification network.

    Raises:
        InputError: they cannot be loaded, or do not fit.
    """
    config: Any = copy.copy(encoder.config)
    config.model_type = type(config).model_type  # HF calls MaskFormer's Swin `swin`, and would rename its weights
    try:
        with hub_or_cache(name), quiet("transformers"):  # its table of keys; what matters of it is said below
            pretrained, report = type(encoder).from_pretrained(  # type: ignore[attr-defined]
                name,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                key_mapping=CLASSIFIER_NAMES.get(type(encoder).__name__),
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(_not_loaded("backbone", name, "backbone", error)) from error
    problems = {
        "missing": [key for key in report["missing_keys"] if not BACKBONE_ALONE.search(key)],
        "unexpected": [key for key in report["unexpected_keys"] if not CLASSIFIER_ALONE.search(key)],
        "of another shape": [key for key, *_ in report["mismatched_keys"]],
    }
    if found := _first_of(problems):
        raise InputError(
            f"the backbone weights in {name} do not fit: {found}; set backbone_config to their architecture"
        )
    found_there = {key: value for key, value in pretrained.state_dict().items() if key not in report["missing_keys"]}
    encoder.load_state_dict(found_there, strict=False)


def prepare_swin(swin: Any) -> None:
    """Make a Swin inside either network train as its authors do, on several devices too."""
    swin.layernorm.requires_grad_(False)  # no output passes it, and DDP waits for every gradient
    for block in (block for stage in swin.encoder.layers for block in stage.blocks):
        # stochastic depth of the MLP, beside that of attention, which is all that HF has
        mlp = block.output if hasattr(block, "output") else block.mlp
        mlp.register_forward_hook(partial(_drop_path, block.drop_path))


def _drop_path(drop: nn.Module, mlp: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A hook, so that no weight changes its name, and no lambda, so that a network can be copied."""
    dropped: Tensor = drop(output)
    return dropped


def _first_of(problems: dict[str, list[str]]) -> str:
    """How many keys have each problem, and the first of them; empty where none has any."""
    return "; ".join(f"{len(keys)} {kind} ({min(keys)}, …)" for kind, keys in problems.items() if keys)


def _not_loaded(what: str, name: str, option: str, error: Exception) -> str:
    reason = first_line(error)
    if Path(name).is_dir():
        return f"{what} in {name} could not be loaded ({reason}); fetch its config.json and model.safetensors again"
    return (
        f"{what} {name!r} could not be loaded ({reason}); if this machine is offline, download config.json and "
        f"model.safetensors elsewhere and set `{option}` to their folder"
    )
