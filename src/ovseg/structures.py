"""Batches, results and the vocabulary: the words in which data, models and tasks talk to each other.

Nothing here computes or reads a file. `B` batch, `N` regions, `Q` queries, `K` classes, `D` width of the
joint CLIP space, `H, W` the image as stored on disk, `h, w` the image as a network sees it.
Images are RGB floats in [0, 1]; normalisation belongs to the networks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

IGNORE_INDEX = 255
WIDE_IGNORE_INDEX = 65535  # of vocabularies in which 255 is a class


class InputError(ValueError):
    """What a user gave cannot be used; the message is one sentence that names the thing and what to do next.

    The command line prints it without a traceback.
    """


@dataclass(frozen=True)
class Vocabulary:
    """Class names in index order.

    Args:
        names: K distinct, non-empty names.
        synonyms: per class the phrases that stand for it; the name alone where not given.
        seen: per class whether the training data has it; all unknown where not given.
        background_from: index from which on the classes are scored as one, the background.

    Raises:
        InputError: no names, an empty or repeated name, or lists of another length.
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...] = ()
    seen: tuple[bool, ...] | None = None
    background_from: int | None = None

    def __post_init__(self) -> None:
        names = tuple(self.names)
        if not names:
            raise InputError("the vocabulary is empty; give at least one class name, for example 'cat, sofa'")
        if not all(name.strip() for name in names):
            blank = next(number for number, name in enumerate(names, start=1) if not name.strip())
            raise InputError(f"the vocabulary has an empty name (number {blank}); delete it")
        folded = [" ".join(name.casefold().split()) for name in names]  # CLIP's tokenizer sees no more
        if repeated := [name for name, count in Counter(folded).items() if count > 1]:
            raise InputError(f"the vocabulary names {', '.join(map(repr, repeated))} more than once; keep one of each")
        synonyms = tuple(tuple(phrases) for phrases in self.synonyms) or tuple((name,) for name in names)
        if len(synonyms) != len(names) or not all(synonyms):
            raise InputError(f"{len(names)} class names need as many non-empty lists of synonyms, got {len(synonyms)}")
        if self.seen is not None and len(self.seen) != len(names):
            raise InputError(f"{len(names)} class names need as many seen flags, got {len(self.seen)}")
        if self.background_from is not None and not 0 < self.background_from < len(names):
            raise InputError(f"background_from {self.background_from} is no index that leaves classes on either side")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "synonyms", synonyms)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def phrases(self) -> tuple[str, ...]:
        """The synonyms of all classes, in order."""
        return tuple(phrase for phrases in self.synonyms for phrase in phrases)

    @property
    def class_of_phrase(self) -> tuple[int, ...]:
        """The index of the class that each of the `phrases` stands for."""
        return tuple(index for index, phrases in enumerate(self.synonyms) for _ in phrases)

    @property
    def scored_names(self) -> tuple[str, ...]:
        """The classes of labels and metrics; a prediction beyond the last of them counts as the last."""
        return self.names if self.background_from is None else (*self.names[: self.background_from], "background")

    @property
    def scored_seen(self) -> tuple[bool, ...] | None:
        """Of each of the `scored_names` whether the training data has it."""
        return None if self.seen is None else self.seen[: len(self.scored_names)]

    @property
    def ignore_index(self) -> int:
        """Label of unlabelled pixels: 255, or 65535 where 255 is a class."""
        return IGNORE_INDEX if len(self.scored_names) <= IGNORE_INDEX else WIDE_IGNORE_INDEX


class SegmentationBatch(NamedTuple):
    """Training images with one class index per pixel."""

    images: Tensor  # (B, 3, h, w) in [0, 1]
    labels: Tensor  # (B, h, w), IGNORE_INDEX where unlabelled; int16 as it travels, int64 on the device
    regions: Tensor | None = None  # (B, h, w) likewise, which region of the image; None: a class has one


class EvalBatch(NamedTuple):
    """Images at network resolution, to be answered at their own size."""

    images: list[Tensor]  # B × (3, h, w) in [0, 1]
    sizes: list[tuple[int, int]]  # B × (H, W)
    names: list[str]  # B image files
    labels: list[Tensor]  # B × (H, W), empty without ground truth; int16 or int32 as it travels, int64 on the device
    masks: list[Tensor] | None = None  # B × (M, H, W) bool, masks from files in place of proposals
    mask_scores: list[Tensor] | None = None  # B × (M,), 1 for ground truth
    faults: tuple[str, ...] = ()  # of images that could not be read and are not among the B


class CaptionBatch(NamedTuple):
    """Images with the nouns of their captions, or with labelled masks; a part of a shard of the store of pairs."""

    images: list[Tensor]  # B × (3, h, w) in [0, 1]
    sizes: list[tuple[int, int]]  # B × (H, W)
    names: list[str]  # B file names, relative to the image folder
    image_ids: list[int]
    nouns: list[list[str]]  # per image, unique; per mask, where labels name the masks
    caption_ids: list[list[int]]  # per noun, the first caption that has it; -1 where it is a label
    masks: list[Tensor] | None  # B × (M, H, W) bool, where no network proposes regions
    mask_scores: list[Tensor] | None = None  # B × (M,); 1 for ground truth
    labelled: bool = False  # whether noun i is the label of mask i, and not to be matched
    shard: int = 0
    ends_shard: bool = False  # the last batch of its shard
    faults: tuple[str, ...] = ()  # a sentence for each image that could not be read, and is not among the B


class RegionTextBatch(NamedTuple):
    """Masked image regions with the text that names each."""

    regions: Tensor  # (N, 3, s, s) in [0, 1], filled outside the mask
    region_masks: Tensor  # (N, s, s) bool
    texts: list[str]  # N
    text_ids: Tensor  # (N,) int64, the place of each among the `texts` of the datamodule, the same in all processes


class Proposals(NamedTuple):
    """What one decoder layer of a proposal network says; see `ovseg.models.MaskProposer`."""

    mask_logits: Tensor  # (B, Q, h / 4, w / 4) of the padded input
    query_embeddings: Tensor  # (B, Q, D), not normalised
    class_logits: Tensor | None  # (B, Q, K + 1), no-object last; None until a vocabulary is set
    objectness: Tensor | None = None  # (B, Q) in [0, 1], in place of class logits where the embeddings are not trained


class RegionTextPair(NamedTuple):
    """One mined pair: a region of an image and the noun that names it."""

    image_id: int
    file_name: str  # relative to the image folder
    size: tuple[int, int]  # (H, W) of the image and of the mask
    counts: bytes  # compressed COCO run lengths of the mask at `size`
    box: tuple[int, int, int, int]  # x0, y0, x1, y1, ends exclusive
    noun: str
    caption_id: int  # -1 for a label
    similarity: float  # cosine of region and noun
    margin: float  # to the best other region of the image, below 0 where a label goes to another than the best;
    # equal to `similarity` where there is only one
    proposal_score: float  # 1 for ground-truth masks


def names_of(vocabulary: Vocabulary | Sequence[str]) -> Vocabulary:
    """A vocabulary from a vocabulary or a list of names.

    Raises:
        InputError: a text or something else in the place of a list of names.
    """
    if isinstance(vocabulary, Vocabulary):
        return vocabulary
    if isinstance(vocabulary, str) or not all(isinstance(name, str) for name in vocabulary):
        raise InputError(f"a vocabulary is a list of names, such as ['cat', 'sofa'], not {vocabulary!r}")
    return Vocabulary(tuple(vocabulary))
