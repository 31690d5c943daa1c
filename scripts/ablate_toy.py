"""Run the paper's ablations on the toy world with ovseg's own stages: `./scripts/ablate_toy.sh`.

Every adaptation starts from the shipped CLIP and takes the same number of steps, with three seeds. A cell shows their
mean and range. Nothing was chosen on the scenes of this world's seed. Finished steps are not repeated.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from ovseg import rle
from ovseg.cli import main as ovseg
from ovseg.data.pairs import read_columns, read_pairs, write_pairs
from ovseg.data.toy import NOUNS
from ovseg.models import OpenVocabSegmenter
from ovseg.structures import RegionTextPair

OUT = Path("runs/ablation")
WORLD, WORLD_SEED, SCENES, VAL_SCENES = OUT / "world", 31, 900, 150
STEPS, FINE_TUNING_LR = 80, 1e-3
LEFT_OUT = 0.2  # drop this share of the mined pairs, the least similar ones
SEEDS = (0, 1, 2)

Adaptation = tuple[tuple[str, str], ...]  # steps in order: (store of pairs, what to train)
Flags = tuple[object, ...]
Row = tuple[Adaptation, Flags]  # with flags for training
Job = tuple[Adaptation, Flags, int]  # a row with a seed
Column = tuple[tuple[str, ...], str]  # flags for the test, metric
Scores = dict[Column, float]  # in per cent
Result = TypeVar("Result")
TRUE_MASKS = WORLD / "annotations" / "regions_train2017.json"
CAPTIONS: Flags = ("--data.captions", WORLD / "annotations" / "captions_train2017.json")  # for mining
TRUE: Flags = ("--model.proposer", "null", "--data.masks", TRUE_MASKS)
PLAIN: Adaptation = ()
PROMPTS: Adaptation = (("mined", "prompt"),)
FINE_TUNED: Adaptation = (("mined", "visual"),)
ROWS: dict[str, Adaptation] = {
    "plain CLIP": PLAIN,
    "fine-tuned on unmasked crops (control)": (("boxes", "visual"),),
    "mask prompts": PROMPTS,
    "fine-tuned": FINE_TUNED,
    "fine-tuned, then mask prompts": (*FINE_TUNED, *PROMPTS),
    "both at once": (("mined", "both"),),
    "fine-tuned on labels of seen nouns": (("labels", "visual"),),
}
WITH_TRUE_MASKS = {"mined": "mined_true", "boxes": "boxes_true"}  # labels have them anyway
ORACLE = ("--model.oracle", "masks")
COLUMNS: dict[Column, str] = {
    (ORACLE, "mask_accuracy"): "mask accuracy, all",
    (ORACLE, "mask_accuracy_seen"): "mask accuracy, seen",
    (ORACLE, "mask_accuracy_unseen"): "mask accuracy, unseen",
    ((), "miou_union"): "mIoU, all",
    ((), "miou_union_seen"): "mIoU, seen",
    ((), "miou_union_unseen"): "mIoU, unseen",
    (ORACLE, "miou_union"): "mIoU of true masks, all",
    (ORACLE, "miou_union_unseen"): "mIoU of true masks, unseen",
}


def run(*words: object) -> None:
    """Run one verb of ovseg."""
    ovseg([str(word) for word in words])


def make_pairs() -> None:
    """Make the stores: mined with the proposer's or true masks, the same pairs unmasked, and clean labels."""
    run("toy", "--out", WORLD, "--scenes", SCENES, "--val_scenes", VAL_SCENES, "--seed", WORLD_SEED)
    stores = {"mined": CAPTIONS, "mined_true": (*CAPTIONS, *TRUE), "all_labels": ("--data.captions", "null", *TRUE)}
    in_parallel(mine, list(stores), list(stores.values()))
    seen = {noun.name for noun in NOUNS if noun.seen}
    for masked, whole in (("mined", "boxes"), ("mined_true", "boxes_true")):
        derive(whole, map(unmasked, read_pairs(OUT / masked)))
    derive("labels", (pair for pair in read_pairs(OUT / "all_labels") if pair.noun in seen))


def derive(name: str, pairs: Iterable[RegionTextPair]) -> None:
    """Write a store derived from others; redo what an interrupted run left."""
    if not (done := OUT / f"{name}.done").is_file():
        shutil.rmtree(OUT / name, ignore_errors=True)
        write_pairs(OUT / name, pairs)
        done.touch()


def mine(name: str, flags: Flags) -> None:
    """Mine a store of pairs."""
    run("mine", "--config", "conf/toy/mine.yaml", *flags, "--data.images", WORLD / "train2017", "--out", OUT / name)


def in_parallel(work: Callable[..., Result], *arguments: Sequence[object]) -> list[Result]:
    """Map a function over its arguments in as many single-threaded processes as there are cores."""
    context, jobs = multiprocessing.get_context("spawn"), int(os.environ.get("JOBS", os.cpu_count() or 1))
    with ProcessPoolExecutor(jobs, context, initializer=begin_worker) as pool:
        try:
            return list(pool.map(work, *arguments, chunksize=1))
        except BaseException:  # Ctrl-C included: do not finish training, and do not start the next job
            for worker in multiprocessing.active_children():
                worker.kill()
            raise


def begin_worker() -> None:
    """Use one thread, and end with the parent: a surviving worker would train in the folders of the next run."""
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Exit once the parent has exited."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def unmasked(pair: RegionTextPair) -> RegionTextPair:
    """Return the pair with its whole box visible."""
    x0, y0, x1, y1 = pair.box
    mask = torch.zeros(1, *pair.size, dtype=torch.bool)
    mask[:, y0:y1, x0:x1] = True
    return pair._replace(counts=rle.encode(mask)[0])


def min_similarity(pairs: str) -> float:
    """Return the least similarity a pair of a store needs; all labels pass."""
    left_out = 0.0 if pairs == "labels" else LEFT_OUT
    similarity = read_columns(OUT / pairs, ["similarity"])["similarity"].to_numpy()
    return float(torch.from_numpy(similarity).quantile(left_out))


def adapt(adaptation: Adaptation, flags: Flags, seed: int) -> str:
    """Adapt CLIP, unless that is done, and return the result: `toy` or a checkpoint."""
    clip, name = "toy", f"seed{seed}"
    for pairs, train in adaptation:
        name += f"-{train}-{pairs}" + "".join(str(flag).rpartition(".")[2] for flag in flags)
        folder = OUT / "clips" / name
        depth = "null" if train == "visual" else 3
        clip = fit(folder, clip, pairs, seed, ("--model.train", train, "--model.clip.prompt_depth", depth, *flags))
    return clip


def fit(folder: Path, clip: str, pairs: str, seed: int, flags: Flags) -> str:
    """Train on a store of pairs, unless that is done, and return the checkpoint; an interrupted run resumes."""
    checkpoint = folder / "last.ckpt"
    if not (folder / "done").is_file():
        words: list[object] = ["fit", "--config", "conf/toy/adapter.yaml", "--seed_everything", seed]
        words += ["--trainer.max_epochs", -1, "--trainer.max_steps", STEPS, "--trainer.default_root_dir", folder]
        words += ["--model.lr", FINE_TUNING_LR, "--model.clip.model", clip]
        words += ["--data.pairs", OUT / pairs, "--data.images", WORLD / "train2017", "--data.val", "null"]
        words += ["--data.num_workers", 0, "--data.sampling.min_similarity", min_similarity(pairs), *flags]
        run(*words, *(("--ckpt_path", checkpoint) if checkpoint.is_file() else ()))
        (folder / "done").touch()
    return str(checkpoint)


def report(segmenter: str, name: str, flags: Sequence[str]) -> dict[str, float]:
    """Return the metrics of `ovseg test` for a segmenter on the benchmark scenes."""
    folder = OUT / "tests" / "-".join([name, *(flag for flag in flags if not flag.startswith("-"))])
    if not (folder / "report.json").is_file():
        words = ["test", "--config", "conf/toy/test.yaml", "--trainer.default_root_dir", folder]
        words += ["--data.images", WORLD / "val2017", "--data.labels", WORLD / "stuffthingmaps" / "val2017"]
        run(*words, "--model.segmenter", segmenter, *flags)
    metrics: dict[str, float] = json.loads((folder / "report.json").read_text())["metrics"]
    return metrics


def score(adaptation: Adaptation, flags: Flags, seed: int) -> Scores:
    """Return the columns for one adapted CLIP, in per cent."""
    checkpoint = adapt(adaptation, flags, seed)
    name = "plain" if checkpoint == "toy" else Path(checkpoint).parent.name
    segmenter = "toy" if checkpoint == "toy" else str(bundled(checkpoint, name))
    return {(how, key): 100 * report(segmenter, name, how)[key] for how, key in COLUMNS}


def bundled(clip: str, name: str) -> Path:
    """Return a segmenter with an adapted CLIP and otherwise the shipped parts and settings."""
    folder = OUT / "segmenters" / name
    if not (folder / "segmenter.yaml").is_file():
        weight = OpenVocabSegmenter.from_pretrained("toy").ensemble_weight
        words = ["--proposer", "toy", "--clip", clip, "--short_side", 128, "--ensemble_weight", weight]
        run("bundle", *words, "--out", folder)
    return folder


def scores(rows: Iterable[Row]) -> list[list[Scores]]:
    """Return the scores of all seeds for each row; plain CLIP, which is not trained, has one."""
    jobs = [[(*row, seed) for seed in (SEEDS if row[0] else SEEDS[:1])] for row in rows]
    results: dict[Job, Scores] = {}
    for lengths in ((0, 1), (2,)):  # adaptations of two steps start from those of one
        if wave := list(dict.fromkeys(job for group in jobs for job in group if len(job[0]) in lengths)):
            results.update(zip(wave, in_parallel(score, *zip(*wave, strict=True)), strict=True))
    return [[results[job] for job in group] for group in jobs]


def publish(title: str, name: str, rows: dict[str, list[Scores]]) -> None:
    """Print a Markdown table and save it with all its numbers; columns that a row lacks stay empty."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for row, seeds in rows.items():
        cells = [[seed[column] for seed in seeds if column in seed] for column in COLUMNS]
        lines.append(f"| {row} | " + " | ".join(map(cell, cells)) + " |")
    text = "\n".join(lines) + "\n"
    (OUT / f"{name}.md").write_text(text)
    with (OUT / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "seed", "column", "value"])
        for row, seeds in rows.items():
            for seed, scored in enumerate(seeds):
                known = {title: scored[column] for column, title in COLUMNS.items() if column in scored}
                writer.writerows([row, seed, title, f"{value:.2f}"] for title, value in known.items())
    print(f"\n{title}\n\n{text}", flush=True)


def cell(values: Sequence[float]) -> str:
    """Format the mean, and the range if there are several values."""
    if len(values) < 2:
        return "".join(f"{value:.1f}" for value in values)
    return f"{sum(values) / len(values):.1f} ({min(values):.1f} … {max(values):.1f})"


def paper_rows() -> None:
    """Publish the tables for pairs mined with the proposer's masks and with true masks."""
    flags = ("--model.classifier", "proposals")
    alone: Scores = {((), key): 100 * value for key, value in report("toy", "plain", flags).items() if "miou" in key}
    true = [tuple((WITH_TRUE_MASKS.get(pairs, pairs), train) for pairs, train in row) for row in ROWS.values()]
    results = scores((row, ()) for row in [*ROWS.values(), *true])
    titles = {"mined": "pairs mined with the proposer's masks", "mined_true": "pairs mined with true masks"}
    for (name, title), rows in zip(titles.items(), (results[: len(ROWS)], results[len(ROWS) :]), strict=True):
        publish(title, name, {"proposals only": [alone], **dict(zip(ROWS, rows, strict=True))})


if __name__ == "__main__":
    try:
        make_pairs()
        paper_rows()
    except KeyboardInterrupt:
        sys.exit("stopped; rerun the command to resume")
