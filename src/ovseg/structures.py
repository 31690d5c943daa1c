"""Batches, results and the vocabulary: what data, models and tasks exchange.

Nothing here computes or reads a file. `B` batch, `N` regions, `Q` queries, `K` classes, `D` width of CLIP's
embedding space; `H, W` size of an image on disk, `h, w` its size as input of a network.
Images are RGB floats in [0, 1]; networks normalise them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

IGNORE_INDEX = 255
WIDE_IGNORE_INDEX = 65535  # for vocabularies in which 255 is a class


class InputError(ValueError):
    """An error that the user can fix; the message is one sentence that says what is wrong and what to do next.

    The command line prints it without a traceback.
    """


@dataclass(frozen=True)
class Vocabulary:
    """Class names in index order.

    Args:
        names: K distinct, non-empty names.
        synonyms: for each class, the phrases that stand for it; by default its name.
        seen: for each class, whether the training data has it; unknown by default.
        background_from: classes from this index on are scored as one class, the background.

    Raises:
        InputError: there are no names, a name is empty or repeated, or another list has the wrong length.
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
        folded = [" ".join(name.casefold().split()) for name in names]  # CLIP's tokenizer ignores case and extra spaces
        if repeated := [name for name, count in Counter(folded).items() if count > 1]:
            raise InputError(f"the vocabulary names {', '.join(map(repr, repeated))} more than once; keep one of each")
        synonyms = tuple(tuple(phrases) for phrases in self.synonyms) or tuple((name,) for name in names)
        if len(synonyms) != len(names) or not all(synonyms):
            raise InputError(f"{len(names)} class names need as many non-empty lists of synonyms, got {len(synonyms)}")
        if self.seen is not None and len(self.seen) != len(names):
            raise InputError(f"{len(names)} class names need as many seen flags, got {len(self.seen)}")
        if self.background_from is not None and not 0 < self.background_from < len(names):
            raise InputError(
                f"background_from is {self.background_from}, which leaves no classes on one side; set another index"
            )
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "synonyms", synonyms)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def phrases(self) -> tuple[str, ...]:
        """The S synonyms of all classes, in class order."""
        return tuple(phrase for phrases in self.synonyms for phrase in phrases)

    @property
    def class_of_phrase(self) -> tuple[int, ...]:
        """For each of the `phrases`, the index of its class."""
        return tuple(index for index, phrases in enumerate(self.synonyms) for _ in phrases)

    @property
    def scored_names(self) -> tuple[str, ...]:
        """The classes of labels and metrics; a prediction beyond the last one counts as the last one."""
        return self.names if self.background_from is None else (*self.names[: self.background_from], "background")

    @property
    def scored_seen(self) -> tuple[bool, ...] | None:
        """For each of the `scored_names`, whether the training data has it."""
        return None if self.seen is None else self.seen[: len(self.scored_names)]

    @property
    def ignore_index(self) -> int:
        """Label of unlabelled pixels: 255, or 65535 where 255 is a class."""
        return IGNORE_INDEX if len(self.scored_names) <= IGNORE_INDEX else WIDE_IGNORE_INDEX


class SegmentationBatch(NamedTuple):
    """Training images with one class index per pixel."""

    images: Tensor  # (B, 3, h, w) in [0, 1]
    labels: Tensor  # (B, h, w), IGNORE_INDEX where unlabelled; int16 in transfer, int64 on the device
    regions: Tensor | None = None  # (B, h, w) likewise, the region of each pixel; None: one region per class


class EvalBatch(NamedTuple):
    """Images at network resolution, whose labels are predicted at the original size."""

    images: list[Tensor]  # B × (3, h, w) in [0, 1]
    sizes: list[tuple[int, int]]  # B × (H, W)
    names: list[str]  # B image files
    labels: list[Tensor]  # B × (H, W), empty without ground truth; int16 or int32 in transfer, int64 on the device
    masks: list[Tensor] | None = None  # B × (M, H, W) bool, masks from files in place of proposals
    mask_scores: list[Tensor] | None = None  # B × (M,), 1 for ground truth
    faults: tuple[str, ...] = ()  # one sentence for each unreadable image, which is not part of the batch


class CaptionBatch(NamedTuple):
    """Images with the nouns of their captions, or with labelled masks; part of one shard of the pair store."""

    images: list[Tensor]  # B × (3, h, w) in [0, 1]
    sizes: list[tuple[int, int]]  # B × (H, W)
    names: list[str]  # B file names, relative to the image folder
    image_ids: list[int]
    nouns: list[list[str]]  # unique nouns of each image, or one per mask if `labelled`
    caption_ids: list[list[int]]  # the first caption that contains each noun; -1 for labels
    masks: list[Tensor] | None  # B × (M, H, W) bool, in place of proposals
    mask_scores: list[Tensor] | None = None  # B × (M,), 1 for ground truth
    labelled: bool = False  # whether noun i is the label of mask i; otherwise nouns are matched to masks
    shard: int = 0
    ends_shard: bool = False  # whether this is the last batch of its shard
    faults: tuple[str, ...] = ()  # one sentence for each unreadable image, which is not part of the batch


class RegionTextBatch(NamedTuple):
    """Masked image regions, each with its text."""

    regions: Tensor  # (N, 3, s, s) in [0, 1], filled outside the mask
    region_masks: Tensor  # (N, s, s) bool
    texts: list[str]  # N
    text_ids: Tensor  # (N,) int64, index of each text in the datamodule's `texts`, the same in all processes


class ImageTextBatch(NamedTuple):
    """Whole images with their regions, each with its text, for region encoders that see whole images."""

    images: list[Tensor]  # B × (3, H, W) in [0, 1]
    masks: list[Tensor]  # B × (N_b, H, W) bool
    texts: list[str]  # N, those of the first image's regions first
    text_ids: Tensor  # (N,) int64, see `RegionTextBatch`


class Proposals(NamedTuple):
    """The output of one decoder layer of a proposal network, see `ovseg.models.MaskProposer`."""

    mask_logits: Tensor  # (B, Q, h / 4, w / 4) of the padded input
    query_embeddings: Tensor  # (B, Q, D), not normalised
    class_logits: Tensor | None  # (B, Q, K + 1), no-object last; None until a vocabulary is set
    objectness: Tensor | None = None  # (B, Q) in [0, 1], in place of class logits where the embeddings are not trained


class ImageProposals(NamedTuple):
    """The proposals for one image at network resolution, before CLIP sees their regions."""

    mask_probs: Tensor  # (Q, h, w) in [0, 1]
    class_logits: Tensor | None  # (Q, K + 1), no-object last
    objectness: Tensor | None  # (Q,) in [0, 1], in place of class logits


class RegionFeatures(NamedTuple):
    """CLIP's features of the N masked regions of one image."""

    features: Tensor  # (N, D), L2-normalised; zero where invalid
    valid: Tensor  # (N,) bool, whether any pixel of the region is visible


class RegionTextPair(NamedTuple):
    """One mined pair: a region of an image and the noun that names it."""

    image_id: int
    file_name: str  # relative to the image folder
    size: tuple[int, int]  # (H, W) of the image and of the mask
    counts: bytes  # compressed COCO run lengths of the mask at `size`
    box: tuple[int, int, int, int]  # x0, y0, x1, y1, ends exclusive
    noun: str
    caption_id: int  # -1 for labels
    similarity: float  # cosine similarity of region and noun
    margin: float  # `similarity` minus that of the image's best other region, or `similarity` if there is no other;
    # negative for a label whose region is not the best match
    proposal_score: float  # 1 for ground-truth masks


def names_of(vocabulary: Vocabulary | Sequence[str]) -> Vocabulary:
    """Return a vocabulary unchanged, or make one from a list of names.

    Raises:
        InputError: `vocabulary` is neither.
    """
    if isinstance(vocabulary, Vocabulary):
        return vocabulary
    if isinstance(vocabulary, str) or not all(isinstance(name, str) for name in vocabulary):
        raise InputError(f"a vocabulary is a list of names, such as ['cat', 'sofa'], not {vocabulary!r}")
    return Vocabulary(tuple(vocabulary))
