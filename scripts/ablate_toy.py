"""The paper's ablations on the toy world, by ovseg's own stages; run it by `./scripts/ablate_toy.sh [sweeps]`.

Every row starts from the shipped CLIP and is adapted for the same number of steps, with three seeds; a cell is the mean
of the three and their range. Nothing was chosen on the scenes of this world's seed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lightning import seed_everything
from toy_scores import ToyScene, read_scenes, score

from ovseg import rle
from ovseg.cli import main as ovseg
from ovseg.data.pairs import COMPLETE, read_pairs, write_pairs
from ovseg.data.toy import NOUNS
from ovseg.models import CLIPAdapter, OpenVocabSegmenter
from ovseg.structures import RegionTextPair

OUT = Path("runs/ablation")
WORLD, WORLD_SEED, SCENES, VAL_SCENES = OUT / "world", 3, 900, 200
REGIONS = WORLD / "annotations" / "regions_train2017.json"
STEPS, FINE_TUNING_LR = 100, 1e-3
SEEDS = (0, 1, 2)

Adaptation = tuple[tuple[str, str], ...]  # (store of pairs, what is trained), one after the other
ROWS: dict[str, Adaptation] = {
    "plain CLIP": (),
    "fine-tuned on unmasked crops (control)": (("boxes", "visual"),),
    "mask prompts": (("mined", "prompt"),),
    "fine-tuned": (("mined", "visual"),),
    "fine-tuned, then mask prompts": (("mined", "visual"), ("mined", "prompt")),
    "both at once": (("mined", "both"),),
    "fine-tuned on labels of seen nouns": (("labels", "visual"),),
}
COLUMNS = {
    **{
        f"accuracy{part}": f"mask accuracy, {name}"
        for part, name in (("", "all"), ("_seen", "seen"), ("_unseen", "unseen"))
    },
    **{f"miou{part}": f"mIoU, {name}" for part, name in (("", "all"), ("_seen", "seen"), ("_unseen", "unseen"))},
    **{f"oracle{part}": f"mIoU of true masks, {name}" for part, name in (("", "all"), ("_unseen", "unseen"))},
}


def run(*words: object) -> None:
    """One verb of ovseg."""
    ovseg([str(word) for word in words])


def make_pairs() -> None:
    """The stores: mined with the proposer's masks and with true masks, mined boxes unmasked, and clean labels."""
    run("toy", "--out", WORLD, "--scenes", SCENES, "--val_scenes", VAL_SCENES, "--seed", WORLD_SEED)
    mine = ["mine", "--config", "conf/toy/mine.yaml", "--data.images", WORLD / "train2017"]
    mine += ["--data.captions", WORLD / "annotations" / "captions_train2017.json"]
    if not (OUT / "mined" / COMPLETE).is_file():
        run(*mine, "--out", OUT / "mined")
    if not (OUT / "mined_true" / COMPLETE).is_file():
        run(*mine, "--out", OUT / "mined_true", "--model.proposals", "null", "--data.masks", REGIONS)
    if not (OUT / "boxes" / COMPLETE).is_file():
        write_pairs(OUT / "boxes", map(unmasked, read_pairs(OUT / "mined")))
    if not (OUT / "labels" / COMPLETE).is_file():
        write_pairs(OUT / "labels", labelled_regions(REGIONS))


def unmasked(pair: RegionTextPair) -> RegionTextPair:
    """The same pair with its whole box visible."""
    x0, y0, x1, y1 = pair.box
    mask = torch.zeros(1, *pair.size, dtype=torch.bool)
    mask[:, y0:y1, x0:x1] = True
    return pair._replace(counts=rle.encode(mask)[0])


def labelled_regions(annotations: Path) -> Iterator[RegionTextPair]:
    """The true regions of seen nouns with their class names: what a closed-set data set has."""
    content = json.loads(annotations.read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for region in content["annotations"]:
        noun = NOUNS[region["category_id"] - 1]
        if noun.seen:
            x, y, width, height = (int(edge) for edge in region["bbox"])
            yield RegionTextPair(
                image_id=region["image_id"],
                file_name=files[region["image_id"]],
                size=tuple(region["segmentation"]["size"]),
                counts=region["segmentation"]["counts"].encode(),
                box=(x, y, x + width, y + height),
                noun=noun.name,
                caption_id=0,
                similarity=1.0,
                margin=1.0,
                proposal_score=1.0,
            )


def adapt(adaptation: Adaptation, seed: int, *flags: object) -> str:
    """The CLIP that an adaptation ends with: `toy`, or a checkpoint; a finished one is taken as it is."""
    clip, name = "toy", f"seed{seed}"
    for pairs, train in adaptation:
        name += f"-{train}-{pairs}" + "".join(str(flag).rpartition(".")[2] for flag in flags)
        folder = OUT / "clips" / name
        if not (folder / "done").is_file():
            words = ["fit", "--config", "conf/toy/adapter.yaml", "--seed_everything", seed]
            words += ["--trainer.max_epochs", -1, "--trainer.max_steps", STEPS, "--trainer.default_root_dir", folder]
            words += ["--model.train", train, "--model.lr", FINE_TUNING_LR, "--model.clip.model", clip]
            words += ["--model.clip.prompt_depth", "null" if train == "visual" else 3, *flags]
            words += ["--data.pairs", OUT / pairs, "--data.images", WORLD / "train2017", "--data.seed", seed]
            if (folder / "last.ckpt").is_file():
                words += ["--ckpt_path", folder / "last.ckpt"]
            run(*words)
            (folder / "done").touch()
        clip = str(folder / "last.ckpt")
    return clip


def measure(
    adaptation: Adaptation, scenes: Sequence[ToyScene], weights: Sequence[float], *flags: object
) -> list[dict[str, float]]:
    """Scores of every seed; of plain CLIP, which has none, once."""
    found = []
    for seed in SEEDS if adaptation else SEEDS[:1]:
        found.append(score(CLIPAdapter(adapt(adaptation, seed, *flags)).eval(), scenes, weights))
    return found


def cell(values: Sequence[float]) -> str:
    """Mean, and range where there are several."""
    mean = sum(values) / len(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f} … {max(values):.1f})"


def table(rows: dict[str, list[dict[str, float]]], columns: dict[str, str]) -> str:
    """Markdown; a column that a row does not have stays empty."""
    lines = ["| | " + " | ".join(columns.values()) + " |", "| --- |" + " --- |" * len(columns)]
    for name, found in rows.items():
        cells = [cell([scores[key] for scores in found]) if key in found[0] else "" for key in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def paper_rows(segmenter: OpenVocabSegmenter, scenes: Sequence[ToyScene]) -> None:
    weight = segmenter.ensemble_weight
    columns = {key.replace("miou", f"miou_{weight:g}"): title for key, title in COLUMNS.items()}
    alone = {key.replace("miou_0", f"miou_{weight:g}"): value for key, value in score(None, scenes, []).items()}
    rows = {"proposals only": [alone]}
    for name, adaptation in ROWS.items():
        rows[name] = measure(adaptation, scenes, [weight])
        publish("pairs mined with the proposer's masks", "mined", rows, columns)
    true = {"plain CLIP": rows["plain CLIP"]}
    for name, adaptation in ROWS.items():
        if any(pairs == "mined" for pairs, _ in adaptation):
            true[name] = measure(tuple(("mined_true", train) for _, train in adaptation), scenes, [weight])
    publish("pairs mined with true masks", "mined_true", true, columns)


def sweeps(segmenter: OpenVocabSegmenter, scenes: Sequence[ToyScene]) -> None:
    prompts, weight = ROWS["mask prompts"], segmenter.ensemble_weight
    columns = {key.replace("miou", f"miou_{weight:g}"): title for key, title in COLUMNS.items()}
    rows = {}
    for depth in (1, 2, 3, 4):
        flags = () if depth == 3 else ("--model.clip.prompt_depth", depth)
        rows[f"depth {depth}"] = measure(prompts, scenes, [weight], *flags)
    rows["depth 3, shared"] = measure(prompts, scenes, [weight], "--model.clip.shared_prompt", "true")
    publish("mask prompts", "prompts", rows, columns)

    weights = [0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
    best = ROWS["fine-tuned, then mask prompts"]
    for part in ("", "_unseen"):
        columns = {f"miou_{value:g}{part}": f"{value:g}" for value in weights}
        rows = {name: measure(row, scenes, weights) for name, row in (("plain CLIP", ()), ("adapted", best))}
        publish(f"ensemble weight, mIoU {part.strip('_') or 'all'}", f"weights{part}", rows, columns)

    rows = {}
    for threshold in (0.3, 0.4, 0.5, 0.6, 0.7):
        again = read_scenes(WORLD, segmenter, threshold)
        rows[f"{threshold:g}"] = measure(best, again, [weight])
    columns = {f"miou_{weight:g}{part}": f"mIoU, {part.strip('_') or 'all'}" for part in ("", "_seen", "_unseen")}
    publish("mask threshold, fine-tuned, then mask prompts", "thresholds", rows, columns)


def publish(title: str, name: str, rows: dict[str, list[dict[str, float]]], columns: dict[str, str]) -> None:
    """Print a table and keep it."""
    text = table(rows, columns)
    (OUT / f"{name}.md").write_text(text)
    print(f"\n{title}\n\n{text}", flush=True)


if __name__ == "__main__":
    seed_everything(0, verbose=False)
    make_pairs()
    toy = OpenVocabSegmenter.from_pretrained("toy")
    (sweeps if sys.argv[1:] == ["sweeps"] else paper_rows)(toy, read_scenes(WORLD, toy))
