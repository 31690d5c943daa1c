"""Evaluate the shipped toy segmenter on freshly drawn scenes: `python scripts/toy_card.py 200 99`.

Unlike in `ovseg test`, every region counts as a separate segment, so two hearts count twice. The card of the weights
shows these numbers for 20 scenes, which a test checks, and for 200.
"""

from __future__ import annotations

import sys

import torch
from PIL import Image

from ovseg.data import read_vocabulary
from ovseg.data.toy import NOUNS, make_scene
from ovseg.images import to_tensor
from ovseg.metrics import MeanIoU, segment_ious
from ovseg.models import OpenVocabSegmenter

SEED = 99  # CLIP's training was chosen on these scenes; no weights were trained on them
SCENES = 20


@torch.no_grad()
def measure(scenes: int = SCENES, seed: int = SEED) -> dict[str, float]:
    """Return the proposals' mean best IoU, CLIP's accuracy on true regions and the segmenter's mIoU, in per cent."""
    segmenter = OpenVocabSegmenter.from_pretrained("toy")
    vocabulary = read_vocabulary("toy")
    segmenter.set_vocabulary(vocabulary)
    miou = MeanIoU(vocabulary.names, seen=vocabulary.seen)
    values_of: dict[str, list[float]] = {}
    for index in range(scenes):
        scene = make_scene(seed, index, split="val2017")
        image = to_tensor(Image.fromarray(scene.image))
        masks = torch.stack([torch.from_numpy(region.mask) for region in scene.regions])
        proposals = segmenter.propose([image])[0].mask_probs > segmenter.mask_threshold
        best = segment_ious(proposals, masks.int().argmax(dim=0))[1].max(dim=1).values
        names = segmenter.classify_regions(image, masks)[0].argmax(dim=1)
        for region, iou, name in zip(scene.regions, best.tolist(), names.tolist(), strict=True):
            kind = "seen" if NOUNS[region.noun].seen else "unseen"
            for part in ("all", kind):
                values_of.setdefault(f"mean best IoU, {part}", []).append(iou)
                values_of.setdefault(f"mask accuracy, {part}", []).append(name == region.noun)
        miou.update(segmenter.labels([image])[0], torch.from_numpy(scene.labels).long())
    result = {name: 100 * sum(values) / len(values) for name, values in sorted(values_of.items())}
    means = miou.compute()
    parts = {"all": "", "seen": "_seen", "unseen": "_unseen"}
    return {**result, **{f"mIoU, {name}": 100 * float(means[f"miou_union{part}"]) for name, part in parts.items()}}


def rows(result: dict[str, float]) -> list[str]:
    """Format the rows of a Markdown table."""
    return [f"| {name} | {value:.1f} |" for name, value in result.items()]


if __name__ == "__main__":
    print("\n".join(rows(measure(*map(int, sys.argv[1:])))))
