"""Draw scenes, proposals and predictions side by side: `python scripts/toy_picture.py ADAPTED_SEGMENTER PICTURE.png`.

From left to right: the image, the proposals (each pixel has the colour of its strongest mask), the predictions of plain
and of adapted CLIP, and the ground truth. The scenes are the first of a world that nothing was chosen on.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from PIL import Image

from ovseg.callbacks.pictures import palette
from ovseg.data import read_vocabulary
from ovseg.data.toy import make_scene
from ovseg.images import to_tensor
from ovseg.models import OpenVocabSegmenter

SEED, SCENES = 31, 4
TITLES = ("image", "proposals", "plain CLIP", "adapted CLIP", "truth")


@torch.no_grad()
def draw(adapted: str, out: str) -> None:
    """Draw the picture and save it."""
    vocabulary = read_vocabulary("toy")
    segmenters = [OpenVocabSegmenter.from_pretrained(name) for name in ("toy", adapted)]
    for segmenter in segmenters:
        segmenter.set_vocabulary(vocabulary)
    figure, axes = plt.subplots(SCENES, len(TITLES), figsize=(10, 2.3 * SCENES), layout="constrained")
    for index, row in enumerate(axes):
        scene = make_scene(SEED, index, split="val2017")
        image = to_tensor(Image.fromarray(scene.image))
        masks = segmenters[0].propose([image])[0].mask_probs
        row[0].imshow(scene.image)
        row[1].imshow(palette(len(masks))[masks.argmax(dim=0).numpy()])
        predictions = [segmenter.labels([image])[0].numpy() for segmenter in segmenters]
        for axis, labels in zip(row[2:], [*predictions, scene.labels.astype(np.int64)], strict=True):
            axis.imshow(palette(len(vocabulary))[labels])
            axis.set_xlabel(_words(labels, vocabulary.names), fontsize=7)
        for axis, title in zip(row, TITLES, strict=True):
            axis.set(xticks=[], yticks=[], title=title if index == 0 else "")
    figure.savefig(out, dpi=100)


def _words(labels: NDArray[np.int64], names: tuple[str, ...]) -> str:
    """Format the names in a label map, largest area first, four per line."""
    values, counts = np.unique(labels, return_counts=True)
    shown = [names[value] for value in values[np.argsort(-counts)] if (labels == value).sum() > 30]
    return "\n".join(", ".join(shown[start : start + 4]) for start in range(0, len(shown), 4))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(*sys.argv[1:])
