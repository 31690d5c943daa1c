"""The interface of region encoders: images and masks in, features of the masked regions out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ovseg.checkpoint import Architecture, check_and_load
from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.structures import ImageTextBatch, InputError, RegionFeatures, RegionTextBatch


class RegionEncoder(nn.Module, ABC):
    """Base of encoders that embed masked regions of images in CLIP's joint space.

    A subclass must implement `forward`. To be trainable, it implements `encode_batch`; if its constructor has further
    arguments, it returns them from `settings`.

    Args:
        clip: encodes the regions and the texts they are compared with.
    """

    whole_images: ClassVar[bool] = False  # whether `encode_batch` takes an `ImageTextBatch`
    prompts_missing: ClassVar[str] = "mask prompts, but this CLIP has none; set prompt_depth, for example to 3"

    def __init__(self, clip: CLIPAdapter) -> None:
        super().__init__()
        self.clip = clip
        self.register_forward_pre_hook(_check_inputs)

    @abstractmethod
    def forward(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[RegionFeatures]:
        """Encode the regions of each image.

        Args:
            images: (3, h, w) in [0, 1] each, at network resolution.
            masks: (N, h, w) bool each.

        Returns:
            (N, D) features for each image; those of a region without visible pixels are invalid and zero.
        """

    def set_text_features(self, text_features: Tensor, class_of_phrase: Tensor) -> None:
        """Receive the vocabulary for which regions are encoded; the base class ignores it.

        Args:
            text_features: (S, D), L2-normalised, one row per phrase.
            class_of_phrase: (S,) index of each phrase's class.
        """

    def selects(self, objectness: Tensor) -> Tensor:
        """Return which proposals of an image `OpenVocabSegmenter` has encoded, (Q,) bool; by default, all.

        Args:
            objectness: (Q,) in [0, 1], or the probability of an object according to the proposal network.
        """
        return torch.ones_like(objectness, dtype=torch.bool)

    def encode_batch(self, batch: RegionTextBatch | ImageTextBatch) -> Tensor:
        """Encode the regions of a training batch, with gradients.

        Args:
            batch: an `ImageTextBatch` if `whole_images`, else a `RegionTextBatch`.

        Returns:
            (N, D), L2-normalised.

        Raises:
            InputError: the encoder cannot be trained.
        """
        raise InputError(
            f"{type(self).__name__} cannot be trained: it has no `encode_batch`; use another region encoder"
        )

    def prompt_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are trained while CLIP's weights are frozen.

        By default these are the parameters that are not CLIP's and, unless `whole_images`, CLIP's mask prompts, which
        belong to crops. If there are none, `prompts_missing` ends the sentence that says so.
        """
        clip, prompt = set(self.clip.parameters()), self.clip.visual.prompt
        own = [parameter for parameter in self.parameters() if parameter not in clip]
        return own if prompt is None or self.whole_images else [*own, *prompt.parameters()]

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments except `clip` as plain values, which a saved segmenter stores."""
        return {}

    def inherit(self, saved: RegionEncoder) -> None:
        """Receive the saved encoder of another class that this one replaces; the base class ignores it.

        Args:
            saved: the encoder of a saved segmenter, with the same `clip`.
        """

    def architecture(self) -> Architecture:
        """Return what identifies the encoder besides its weights: class, settings and CLIP's architecture."""
        return {"class_path": class_path(type(self)), "settings": self.settings(), "clip": self.clip.architecture()}

    def load_own_weights(self, weights: Mapping[str, Tensor], source: str | Path, saved: Mapping[str, Any]) -> None:
        """Load `own_weights` that were saved.

        Args:
            weights: by the keys of the state dict.
            source: where they come from, for the error.
            saved: the settings that they were saved with.

        Raises:
            InputError: they do not fit, for example because these settings differ.
        """
        own = self.own_weights()
        clip = {key: value for key, value in self.state_dict().items() if key not in own}
        try:
            check_and_load(self, {**clip, **weights}, source)
        except InputError as error:
            if other := differences(self.settings(), saved):
                raise InputError(
                    f"{source} does not fit these settings of {type(self).__name__}: {other}; give the saved ones"
                ) from error
            raise

    def own_weights(self) -> dict[str, Tensor]:
        """Return the weights that are not `clip`'s, by their keys in the state dict."""
        # by address, since an encoder may hold `clip` under several names
        shared = {value.data_ptr() for value in self.clip.state_dict().values()}
        return {key: value for key, value in self.state_dict().items() if value.data_ptr() not in shared}


def _check_inputs(encoder: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Check the images and masks of `forward`, as a hook, for every subclass.

    Raises:
        InputError: their numbers or shapes do not match, an image has no pixels, or the masks are not bool.
    """
    if len(inputs) != 2:  # keyword arguments
        return
    images, masks = inputs
    if len(images) != len(masks):
        raise InputError(f"{len(images)} images came with the masks of {len(masks)}; pass masks (N, h, w) for each")
    for image, image_masks in zip(images, masks, strict=True):
        if image.ndim != 3 or len(image) != 3 or not image.numel():
            raise InputError(f"an image has shape {tuple(image.shape)}; pass RGB images of shape (3, h, w)")
        if image_masks.ndim != 3 or image_masks.shape[1:] != image.shape[1:]:
            raise InputError(
                f"masks of shape {tuple(image_masks.shape)} do not match an image of {image.shape[1]} × "
                f"{image.shape[2]} pixels; resize them to (N, {image.shape[1]}, {image.shape[2]})"
            )
        if image_masks.dtype != torch.bool:
            raise InputError(f"masks are {image_masks.dtype}, not bool; compare them with a threshold first")


def differences(settings: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """Describe which settings of a region encoder differ from saved ones; an empty text if none does."""
    names = [name for name in saved if settings.get(name) != saved[name]]
    return "; ".join(f"{name} {settings.get(name)!r}, not {saved[name]!r}" for name in names)


def class_path(encoder: type[RegionEncoder]) -> str:
    """Return the name by which configs and saved segmenters refer to a region encoder."""
    public = encoder.__module__.startswith("ovseg.models.")
    return f"{'ovseg.models' if public else encoder.__module__}.{encoder.__qualname__}"
