"""Networks: tensors in, tensors out."""

from ovseg.models.clip_adapter import CLIPAdapter
from ovseg.models.mask_prompt import MaskPrompt, MaskPromptedViT
from ovseg.models.proposals import MaskProposer
from ovseg.models.released import import_official
from ovseg.models.segmenter import OpenVocabSegmenter
from ovseg.models.text import PROMPT_TEMPLATES, TextClassifier

__all__ = [
    "PROMPT_TEMPLATES",
    "CLIPAdapter",
    "MaskPrompt",
    "MaskPromptedViT",
    "MaskProposer",
    "OpenVocabSegmenter",
    "TextClassifier",
    "import_official",
]
