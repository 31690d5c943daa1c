"""Measure the quality of mined pairs and what CLIP learns from them: the paper's Table 2 in miniature.

Each row is a store of pairs: from one or more captions per scene, with the proposer's or true masks, with one filter or
none. CLIP is fine-tuned on each for the same number of steps, with three seeds, and classifies the true masks of the
benchmark scenes. World, adaptation and test are those of ablate_toy.py; steps finished here or there are not repeated.
Run it with `./scripts/ablate_toy.sh mining`.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import ablate_toy
import torch
from ablate_toy import CAPTIONS, ORACLE, OUT, SEEDS, TRUE, TRUE_MASKS

from ovseg import rle
from ovseg.data.mask_reader import ImageMasks
from ovseg.data.masks import CocoMasks
from ovseg.data.pairs import Pairs, read_pairs
from ovseg.data.toy import NOUNS
from ovseg.structures import RegionTextPair

MINED: dict[str, ablate_toy.Flags] = {  # further stores → flags of `ovseg mine`
    "mined_2captions": (*CAPTIONS, "--data.captions_per_image", 2),
    "mined_5captions": (*CAPTIONS, "--data.captions_per_image", 5),  # a scene has two or three
    "mined_true_2captions": (*CAPTIONS, "--data.captions_per_image", 2, *TRUE),
    "mined_area": (*CAPTIONS, "--model.filters.min_area", 0.02),
    "mined_overlap": (*CAPTIONS, "--model.filters.max_overlap", 0.5),
}
SHARE, CAP = ablate_toy.LEFT_OUT, 50
ALL = ("--data.sampling.min_similarity", "null")  # otherwise adaptations drop the least similar share
ROWS: dict[str, tuple[str, ablate_toy.Flags]] = {  # row → store, flags for training
    "proposals, 1 caption": ("mined", ALL),
    "proposals, 2 captions": ("mined_2captions", ALL),
    "proposals, all captions": ("mined_5captions", ALL),
    "true masks, 1 caption": ("mined_true", ALL),
    "true masks, 2 captions": ("mined_true_2captions", ALL),
    "true masks with labels of seen nouns": ("labels", ()),
    f"proposals, 1 caption, without the least similar {SHARE:.0%}": ("mined", ()),
    f"… without the {SHARE:.0%} of the smallest margin": ("mined_margin", ALL),
    "… without regions below 2 % of the scene": ("mined_area", ALL),
    "… without regions that overlap by more than half": ("mined_overlap", ALL),
    f"… at most {CAP} pairs a noun": ("mined", (*ALL, "--data.sampling.max_per_noun", CAP)),
}
CLASS_OF = {form: noun.name for noun in NOUNS for word in noun.synonyms for form in (word, word.removesuffix("s"))}
QUALITY = ("pairs", "nouns", "right", "right, noun in the scene")
SCORES = {"mask_accuracy": "accuracy, all", "mask_accuracy_seen": "seen", "mask_accuracy_unseen": "unseen"}


def without_small_margins() -> None:
    """Derive a store without the smallest margins, which `PairFilters` would drop."""
    pairs = read_pairs(OUT / "mined")
    margins = torch.from_numpy(pairs.column("margin").to_numpy().copy())
    ablate_toy.derive("mined_margin", pairs.take((margins >= margins.quantile(SHARE)).nonzero()[:, 0].numpy()))


def pairs_of(row: str) -> Pairs:
    """Return the pairs that a row trains on."""
    store, flags = ROWS[row]
    least = None if flags else ablate_toy.min_similarity(store)
    return read_pairs(OUT / store).filter(least, CAP if CAP in flags else None)


def judge(pairs: Pairs) -> list[str]:
    """Compare nouns with the true classes of their regions, which are those of most of their pixels."""
    true = CocoMasks(TRUE_MASKS)
    judged = [verdict(pair, true(Path(pair.file_name), pair.size, pair.image_id)) for pair in pairs]
    in_scene = [right for right, present in judged if present]
    shares = (f"{100 * sum(part) / len(part):.1f}" for part in ([right for right, _ in judged], in_scene))
    return [f"{len(pairs):,}", str(len(pairs.column("noun").unique())), *shares]


def verdict(pair: RegionTextPair, scene: ImageMasks) -> tuple[bool, bool]:
    """Return whether the noun is the region's class, and whether it is in the scene."""
    pixels = (scene.masks & rle.decode([pair.counts], pair.size)).sum(dim=(1, 2)).tolist()
    areas: Counter[str] = Counter()
    for name, count in zip(scene.names, pixels, strict=True):
        areas[name] += count
    noun = CLASS_OF.get(pair.noun)
    return areas.most_common(1)[0][0] == noun, noun in areas


def accuracy(row: str, seed: int) -> dict[str, float]:
    """Return the accuracy of a row's CLIP on the true masks of the benchmark scenes."""
    store, flags = ROWS[row]
    checkpoint = ablate_toy.adapt(((store, "visual"),), flags, seed)
    name = Path(checkpoint).parent.name
    return ablate_toy.report(str(ablate_toy.bundled(checkpoint, name)), name, ORACLE)


def main() -> None:
    ablate_toy.make_pairs()
    without_small_margins()
    ablate_toy.in_parallel(ablate_toy.mine, list(MINED), list(MINED.values()))
    accuracies = iter(
        ablate_toy.in_parallel(accuracy, *zip(*((row, seed) for row in ROWS for seed in SEEDS), strict=True))
    )
    scores = {"plain CLIP": [ablate_toy.report("toy", "plain", ORACLE)]}
    scores |= {row: [next(accuracies) for _ in SEEDS] for row in ROWS}
    lines = [f"| | {' | '.join([*QUALITY, *SCORES.values()])} |", "| --- |" + " --- |" * len([*QUALITY, *SCORES])]
    for row, seeds in scores.items():
        quality = judge(pairs_of(row)) if row in ROWS else [""] * len(QUALITY)
        cells = [ablate_toy.cell([100 * seed[key] for seed in seeds]) for key in SCORES]
        lines.append(f"| {' | '.join([row, *quality, *cells])} |")
    (OUT / "mining.md").write_text("\n".join(lines) + "\n")
    print((OUT / "mining.md").read_text())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; rerun the command to resume")
