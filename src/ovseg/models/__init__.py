"""Networks: CLIP, proposers, region encoders, and the segmenter that combines them."""

from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.clip.mask_prompt import MaskPrompt, MaskPromptedViT
from ovseg.models.clip.text import PROMPT_TEMPLATES, TextEncoder
from ovseg.models.proposals import GivenMasks, MaskProposer, Proposer
from ovseg.models.regions import CascadeEncoder, CropEncoder, MeanPoolEncoder, RegionEncoder, SinglePassEncoder
from ovseg.models.released.importing import import_released
from ovseg.models.segmenter import OpenVocabSegmenter

__all__ = [
    "PROMPT_TEMPLATES",
    "CLIPAdapter",
    "CascadeEncoder",
    "CropEncoder",
    "GivenMasks",
    "MaskPrompt",
    "MaskPromptedViT",
    "MaskProposer",
    "MeanPoolEncoder",
    "OpenVocabSegmenter",
    "Proposer",
    "RegionEncoder",
    "SinglePassEncoder",
    "TextEncoder",
    "import_released",
]
