#!/usr/bin/env bash
# Runs OVSeg on the embedded toy world: mines region-text pairs from captions, adapts CLIP to masked regions with mask
# prompts, alone and with fine-tuning, tests before and after, and segments a scene into your own words. Needs nothing but
# Python 3.11.
#   ./scripts/quickstart.sh                                     everything, into runs/quickstart
#   ./scripts/quickstart.sh 'a heart, water, a pile of sand'    with your own words
# Finished steps are not repeated; delete runs/quickstart to start afresh.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

out=runs/quickstart
words=${1:-grass, sand, water, sky, snow, brick, wood, gravel, circle, star, heart, moon, arrow, gear}
data=(--data.images "$out/world/val2017" --data.labels "$out/world/stuffthingmaps/val2017")

# step NAME TEXT COMMAND …: runs the command unless it finished before; redoes what an interrupted run left
step() {
    local name=$1 text=$2
    shift 2
    if [ -e "$out/.done/$name" ]; then
        printf '\n== %s: already finished\n' "$text"
        return
    fi
    printf '\n== %s\n   %s\n' "$text" "$*"
    rm -rf "${out:?}/$name"
    "$@"
    mkdir -p "$out/.done"
    touch "$out/.done/$name"
}

SECONDS=0
step world "1/7 Draw 900 scenes with captions, and 100 benchmark scenes" \
    ovseg toy --out "$out/world" --scenes 900 --val_scenes 100 --seed 1
step pairs "2/7 Mine: nouns from the captions, regions from the proposals, matched by CLIP" \
    ovseg mine --config conf/toy/mine.yaml --out "$out/pairs" --data.images "$out/world/train2017" \
    --data.captions "$out/world/annotations/captions_train2017.json"
step before "3/7 Test with plain CLIP" \
    ovseg test --config conf/toy/test.yaml "${data[@]}" --trainer.default_root_dir "$out/before"

# adapt NAME TRAIN TEXT FLAG …: adapts CLIP, joins it with the proposals into a segmenter, and tests that
adapt() {
    local name=$1 train=$2 text=$3
    shift 3
    step "$name" "$text" \
        ovseg fit --config conf/toy/adapter.yaml --data.pairs "$out/pairs" --data.images "$out/world/train2017" \
        --data.val.images "$out/world/val2017" --data.val.labels "$out/world/stuffthingmaps/val2017" \
        --model.train "$train" "$@" --trainer.default_root_dir "$out/$name"
    step "segmenter_$name" "… join the proposals and the adapted CLIP into a segmenter" \
        ovseg bundle --proposer toy --clip "$out/$name/last.ckpt" --out "$out/segmenter_$name" --short_side 128 \
        --ensemble_weight 0.9
    step "after_$name" "… test it" \
        ovseg test --config conf/toy/test.yaml "${data[@]}" --model.segmenter "$out/segmenter_$name" \
        --trainer.default_root_dir "$out/after_$name"
}
adapt prompts prompt "4/7 Adapt CLIP to masked regions by mask prompts; CLIP itself stays frozen"
adapt both both "5/7 Adapt CLIP by mask prompts and fine-tuning at once" --model.lr 1e-3

printf '\n== 6/7 Segment a scene into your words, with plain and with adapted CLIP: %s\n' "$words"
scene=$out/world/val2017/000000000001.jpg
ovseg segment --model toy --images "$scene" --vocabulary "$words" --out "$out/segmented_plain"
ovseg segment --model "$out/segmenter_both" --images "$scene" --vocabulary "$words" --out "$out/segmented"

printf '\n== 7/7 Compare\n'
python - "$out" <<'PYTHON'
import csv, sys
from pathlib import Path

from matplotlib import pyplot

out = Path(sys.argv[1])
rows = {"miou_union": "mIoU, all 24 nouns", "miou_union_seen": "mIoU, 16 seen", "miou_union_unseen": "mIoU, 8 unseen"}
columns = {"before": "plain CLIP", "after_prompts": "prompts, CLIP frozen", "after_both": "both"}
tests = {}
for name in columns:
    with max((out / name).rglob("metrics.csv")).open() as lines:
        tests[name] = list(csv.DictReader(lines))[-1]
print(f"{'on 100 benchmark scenes, in %':30}" + "".join(f"{title:>22}" for title in columns.values()))
for key, title in rows.items():
    print(f"{title:30}" + "".join(f"{100 * float(tests[name][f'test/{key}']):22.1f}" for name in columns))

pictures = {
    "image": out / "world" / "val2017" / "000000000001.jpg",
    "plain CLIP": out / "segmented_plain" / "000000000001_overlay.png",
    "adapted CLIP": out / "segmented" / "000000000001_overlay.png",
}
images = {title: pyplot.imread(file) for title, file in pictures.items()}
widths = [image.shape[1] / image.shape[0] for image in images.values()]
figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained", width_ratios=widths)
for axis, (title, image) in zip(axes, images.items(), strict=True):
    axis.imshow(image)
    axis.set_title(title)
    axis.axis("off")
figure.savefig(out / "before_and_after.png", dpi=100)
PYTHON
printf '\nLook at %s, and at the logs of the adaptation: tensorboard --logdir %s\n' "$out/before_and_after.png" "$out"
printf 'Took %d min %d s after the installation.\n' $((SECONDS / 60)) $((SECONDS % 60))
