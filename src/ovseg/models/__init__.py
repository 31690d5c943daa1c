"""Networks: tensors in, tensors out."""

from ovseg.models.clip_adapter import CLIPAdapter
from ovseg.models.mask_prompt import MaskPrompt, MaskPromptedViT
from ovseg.models.text import PROMPT_TEMPLATES, TextClassifier

__all__ = ["PROMPT_TEMPLATES", "CLIPAdapter", "MaskPrompt", "MaskPromptedViT", "TextClassifier"]
