"""Compare ways to encode regions on the toy world: `./scripts/ablate_toy.sh regions`.

A cell is a region encoder, a recipe of adaptation and a seed. World, pairs and number of steps are those of
ablate_toy.py, and all cells share the proposals of the shipped segmenter. The recipe of the single pass was chosen on
the scenes of seed CHOSEN_ON; the tables show those of seed REPORTED_ON, on which nothing was chosen. Finished cells are
not repeated.
"""

from __future__ import annotations

import csv
import functools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import ablate_toy
import torch
from ablate_toy import OUT, SEEDS, Flags
from torch import Tensor

import ovseg.models
from ovseg.checkpoint import read_state
from ovseg.data import SegmentationBenchmark, read_vocabulary
from ovseg.metrics import MaskAccuracy, MeanIoU
from ovseg.models import CLIPAdapter, OpenVocabSegmenter, RegionEncoder
from ovseg.models.ensemble import RegionLogits, class_scores
from ovseg.ops import semantic_labels
from ovseg.structures import ImageProposals
from ovseg.tasks.segments import segment_masks

FOLDER = OUT / "regions"
CHOSEN_ON, REPORTED_ON = 77, 41  # seeds of benchmark scenes
SCENES = {CHOSEN_ON: 60, REPORTED_ON: 300}
SMALL = 16 * 8**2  # pixels: a segment of a smaller area than 16 of the 256 patches of a scene is small
TIMED, REPEATS = 40, 5  # scenes whose proposals are encoded to measure the time, and how often
MASKS, BLOCKS = ("hard", "soft", "learned"), (1, 2, 3, 4)
UNTRAINED = "untrained"
# recipe → masks; only prompt tuning trains the scales of a learned mask
PRODUCT = {UNTRAINED: MASKS[:2], "visual": MASKS[:2], "prompt": MASKS, "distilled": MASKS[:1]}
CROP_RECIPES = {"prompt": ablate_toy.PROMPTS, "visual": ablate_toy.FINE_TUNED, "both": (("mined", "both"),)}
# distilled from crops adapted by `both` → weight of the contrastive loss, and what is trained
DISTILLED = {
    "distilled": (0.0, "visual"),
    "distilled, 0.1 × pairs": (0.1, "visual"),
    "distilled, 0.3 × pairs": (0.3, "visual"),
    "distilled, 1 × pairs": (1.0, "visual"),
    "distilled, 0.1 × pairs, both": (0.1, "both"),
}
COLUMNS = {
    "mask_accuracy": "mask accuracy, all",
    "mask_accuracy_seen": "seen",
    "mask_accuracy_unseen": "unseen",
    "mask_accuracy_small": "small",
    "mask_accuracy_large": "large",
    "miou_union": "mIoU, all",
    "miou_union_seen": "seen",
    "miou_union_unseen": "unseen",
}

Result = TypeVar("Result")
Scores = dict[str, dict[str, float]]  # seed of the scenes → metric → per cent
Rows = dict[str, tuple["Encoder", str]]  # row of a table → encoder and recipe


class Encoder(NamedTuple):
    """A region encoder: a class of `ovseg.models` and its settings."""

    kind: str
    options: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        return "-".join([self.kind, *(f"{key}={value}" for key, value in self.options)])

    @property
    def flags(self) -> Flags:
        """The flags with which a task builds the encoder."""
        words: list[object] = ["--model.region_encoder", f"ovseg.models.{self.kind}"]
        for key, value in self.options:
            words += [f"--model.region_encoder.{key}", value]
        return tuple(words)

    def build(self, checkpoint: str) -> RegionEncoder:
        """Return the encoder with the CLIP and the weights of a checkpoint, or untrained for `toy`."""
        encoder: RegionEncoder = getattr(ovseg.models, self.kind)(CLIPAdapter(checkpoint), **dict(self.options))
        if checkpoint != "toy" and (own := encoder.own_weights()):
            state: dict[str, Tensor] = read_state(checkpoint)["state_dict"]
            encoder.load_state_dict({key: state[f"region_encoder.{key}"] for key in own}, strict=False)
        return encoder.eval()


class Cell(NamedTuple):
    """An encoder, how CLIP is adapted for it, and the seed of the adaptation."""

    encoder: Encoder
    recipe: str
    seed: int

    @property
    def name(self) -> str:
        return re.sub("[ ,×]+", "-", f"{self.encoder.name}-{self.recipe}-seed{self.seed}")


class Scene(NamedTuple):
    """A benchmark scene with everything that does not depend on the region encoder."""

    image: Tensor  # (3, h, w) in [0, 1]
    labels: Tensor  # (h, w)
    classes: Tensor  # (S,) of the ground-truth segments
    segments: Tensor  # (S, h, w) bool
    proposals: ImageProposals


CROPS = Encoder("CropEncoder")
MEAN_POOL = Encoder("MeanPoolEncoder", (("clip_short_side", 128),))


def single_pass(recipe: str, mask: str = "hard", block: int = 1, keys: str = "self", side: int = 128) -> Encoder:
    """Return the single pass at the resolution of the scenes by default, with prompt keys if the recipe trains them."""
    options: list[tuple[str, object]] = [("clip_short_side", side), ("branch_block", block), ("mask", mask)]
    options += [("keys", keys)] if keys != "self" else []
    options += [("prompt_keys", 4)] if recipe == "prompt" or recipe.endswith("both") else []
    return Encoder("SinglePassEncoder", tuple(options))


def cells(encoder: Encoder, recipe: str, seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """Return the cells of a row: one for each seed, or one if nothing is trained."""
    return [Cell(encoder, recipe, seed) for seed in (seeds[:1] if recipe == UNTRAINED else seeds)]


def train(cell: Cell) -> str:
    """Adapt CLIP through the cell's encoder, unless that is done, and return the result: `toy` or a checkpoint."""
    if cell.recipe == UNTRAINED:
        return "toy"
    if cell.encoder == CROPS:  # shared with ablate_toy.py
        return ablate_toy.adapt(CROP_RECIPES[cell.recipe], (), cell.seed)
    if cell.recipe in DISTILLED:
        weight, trained = DISTILLED[cell.recipe]
        teacher = ablate_toy.adapt(CROP_RECIPES["both"], (), cell.seed)
        task: Flags = ("--model", "ovseg.tasks.DistillationTask", "--model.teacher", teacher, "--model.proposer", "toy")
        task += ("--model.contrastive_weight", weight, "--model.lr", ablate_toy.FINE_TUNING_LR)
        task += ("--model.warmup_steps", 10, "--model.clip.model", "toy")
    else:
        task, trained = (), cell.recipe
    flags: Flags = (*task, "--model.train", trained, "--model.clip.prompt_depth", "null", *cell.encoder.flags)
    return ablate_toy.fit(FOLDER / "clips" / cell.name, "toy", "mined", cell.seed, flags)


def score(cell: Cell) -> Scores:
    """Return the metrics of a cell."""
    return stored(f"scores/{cell.name}", lambda: evaluate_worlds(cell.encoder.build(train(cell))))


def evaluate_worlds(encoder: RegionEncoder) -> Scores:
    """Return the metrics on the scenes of each seed."""
    return {str(seed): evaluate(encoder, seed) for seed in SCENES}


def stored(name: str, compute: Callable[[], Result]) -> Result:
    """Return a result from its file, or compute it and write the file."""
    file = FOLDER / f"{name}.json"
    if not file.is_file():
        computed = compute()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(computed, indent=1))
        partial.replace(file)
    result: Result = json.loads(file.read_text())
    return result


@functools.cache
def toy_segmenter() -> OpenVocabSegmenter:
    """Return the shipped segmenter with the vocabulary of the benchmark scenes."""
    segmenter = OpenVocabSegmenter.from_pretrained("toy")
    segmenter.set_vocabulary(read_vocabulary("toy"))
    return segmenter


@functools.cache
def scenes(seed: int) -> list[Scene]:
    """Return the benchmark scenes of a world, with their ground-truth segments and proposals."""
    world, segmenter, result = FOLDER / f"world{seed}", toy_segmenter(), []
    data = SegmentationBenchmark(str(world / "val2017"), str(world / "stuffthingmaps" / "val2017"), "toy")
    data.configure(segmenter.resize)
    for index in range(len(data.dataset)):
        batch = data.dataset[index]
        image, labels = batch.images[0], batch.labels[0].long()
        classes, segments = segment_masks(labels, (image.shape[1], image.shape[2]), data.vocabulary.ignore_index)
        result.append(Scene(image, labels, classes, segments, segmenter.propose([image])[0]))
    return result


@torch.no_grad()
def evaluate(encoder: RegionEncoder, seed: int) -> dict[str, float]:
    """Return metrics of `ovseg test` in per cent, and the mask accuracy of small and of large segments."""
    segmenter, vocabulary = toy_segmenter(), read_vocabulary("toy")
    segmenter.region_encoder = encoder
    segmenter.set_vocabulary(vocabulary)  # a cascade compares regions with it
    miou = MeanIoU(vocabulary.names, seen=vocabulary.seen)
    accuracies = {part: MaskAccuracy(len(vocabulary), vocabulary.seen) for part in ("", "_small", "_large")}
    for scene in scenes(seed):
        probs = scene.proposals.mask_probs
        # apart, since a cascade gives each call its budget
        logits, _ = segmenter.classify_regions(scene.image, scene.segments)
        regions = RegionLogits(*segmenter.classify_regions(scene.image, probs > segmenter.mask_threshold))
        small = scene.segments.flatten(1).sum(dim=1) < SMALL
        for part, rows in (("", small | ~small), ("_small", small), ("_large", ~small)):
            accuracies[part].update(logits.argmax(dim=1)[rows], scene.classes[rows])
        scores = class_scores(scene.proposals, regions, segmenter.classifier, segmenter.ensemble_weight)
        miou.update(semantic_labels(scores, probs, (scene.labels.shape[0], scene.labels.shape[1])), scene.labels)
    result = {name: value for name, value in miou.compute().items() if name.startswith("miou_union")}
    for part, accuracy in accuracies.items():
        result |= {f"{name}{part}": value for name, value in accuracy.compute().items()}
    return {name: 100 * float(value) for name, value in result.items()}


def milliseconds(encoders: dict[str, RegionEncoder]) -> dict[str, float]:
    """Return the median time in which one thread encodes the proposals of a scene, for each encoder."""
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in encoders}
    for scene in scenes(CHOSEN_ON)[:TIMED] * REPEATS:
        masks = scene.proposals.mask_probs > toy_segmenter().mask_threshold
        for name, encoder in encoders.items():  # in turns, since the machine's speed may change
            start = time.perf_counter()
            with torch.no_grad():
                encoder([scene.image], [masks])
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def make_rows() -> Rows:
    """Return the rows of the table of recipes."""
    recipes: Rows = {f"crops, {recipe}": (CROPS, recipe) for recipe in (UNTRAINED, *CROP_RECIPES)}
    recipes |= {f"mean pooling, {recipe}": (MEAN_POOL, recipe) for recipe in (UNTRAINED, "visual")}
    for keys, title, trained in (
        ("patches", "patches' keys", ("prompt", "visual", "distilled")),
        ("self", "self key", ("prompt", "visual", "both", *DISTILLED)),
    ):
        recipes |= {f"{title}, {recipe}": (single_pass(recipe, keys=keys), recipe) for recipe in (UNTRAINED, *trained)}
    recipes |= {
        f"self key, learned mask, {recipe}": (single_pass(recipe, "learned"), recipe)
        for recipe in ("prompt", "both", "distilled, 0.1 × pairs, both")
    }
    recipes |= {  # the best of the product below on the scenes of CHOSEN_ON, with all seeds
        f"self key, {mask} mask, block 2, visual": (single_pass("visual", mask, 2), "visual") for mask in MASKS[:2]
    }
    recipes |= {
        f"self key, CLIP's own resolution, {recipe}": (single_pass(recipe, side=64), recipe)
        for recipe in (UNTRAINED, "distilled, 0.1 × pairs")
    }
    return recipes


def make_product() -> dict[tuple[str, str], list[Cell]]:
    """Return the cells of every branch block, with one seed, by recipe and mask."""
    return {
        (recipe, mask): [Cell(single_pass(recipe, mask, block), recipe, SEEDS[0]) for block in BLOCKS]
        for recipe, masks in PRODUCT.items()
        for mask in masks
    }


def table(title: str, rows: dict[str, list[Scores]], times: dict[str, float]) -> str:
    """Return a Markdown table of rows with the scores of each seed, and their milliseconds."""
    lines = [f"| {title} | {' | '.join(COLUMNS.values())} | ms an image |", "| --- |" + " --- |" * (len(COLUMNS) + 1)]
    for row, seeds in rows.items():
        values = [ablate_toy.cell([scores[str(REPORTED_ON)][column] for scores in seeds]) for column in COLUMNS]
        lines.append(f"| {row} | {' | '.join(values)} | {times[row]:.1f} |")
    return "\n".join(lines) + "\n"


def product_table(scores: dict[Cell, Scores]) -> str:
    """Return a Markdown table of masks and branch blocks: mask accuracy and mIoU, seen and unseen, of one seed."""
    metrics = ("mask_accuracy_seen", "mask_accuracy_unseen", "miou_union_seen", "miou_union_unseen")
    blocks = [f"before block {block}" for block in BLOCKS]
    lines = [f"| recipe | mask | {' | '.join(blocks)} |", "| --- |" + " --- |" * (len(blocks) + 1)]
    for (recipe, mask), row in make_product().items():
        values = [" / ".join(f"{scores[cell][str(REPORTED_ON)][metric]:.1f}" for metric in metrics) for cell in row]
        lines.append(f"| {recipe} | {mask} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    rows, product = make_rows(), [cell for row in make_product().values() for cell in row]
    ablate_toy.make_pairs()
    for seed, count in SCENES.items():
        ablate_toy.run("toy", "--out", FOLDER / f"world{seed}", "--scenes", 1, "--val_scenes", count, "--seed", seed)
    encoders = {encoder.name: encoder.build("toy") for encoder, _ in rows.values()}  # refuses wrong settings early
    teachers = cells(CROPS, "both")  # first, since distillation starts from them
    jobs = list(dict.fromkeys([*(cell for row in rows.values() for cell in cells(*row)), *product]))
    ablate_toy.in_parallel(score, teachers)
    ablate_toy.in_parallel(score, jobs)
    scores = {cell: score(cell) for cell in jobs}
    times = stored("milliseconds", lambda: milliseconds(encoders))
    results = {row: [scores[cell] for cell in cells(*key)] for row, key in rows.items()}
    text = table("recipe", results, {row: times[encoder.name] for row, (encoder, _) in rows.items()})
    text += "\n" + product_table(scores)
    (FOLDER / "regions.md").write_text(text)
    with (FOLDER / "regions.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["encoder", "recipe", "seed", "scenes", "metric", "value"])
        for cell, worlds in scores.items():
            for world, metrics in worlds.items():
                key = [cell.encoder.name, cell.recipe, cell.seed, world]
                writer.writerows([*key, metric, f"{value:.2f}"] for metric, value in metrics.items())
    print(text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; rerun the command to resume")
