#!/usr/bin/env bash
# Runs OVSeg on the embedded toy world: mines region-text pairs from captions, adapts CLIP to masked regions with mask
# prompts, tests before and after, and segments a scene into your own words. Needs nothing but Python 3.11.
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
step adapter "4/7 Adapt CLIP to masked regions by mask prompts; CLIP itself stays frozen" \
    ovseg fit --config conf/toy/adapter.yaml --data.pairs "$out/pairs" --data.images "$out/world/train2017" \
    --data.val.images "$out/world/val2017" --data.val.labels "$out/world/stuffthingmaps/val2017" \
    --trainer.default_root_dir "$out/adapter"
step segmenter "5/7 Join the proposals and the adapted CLIP into a segmenter" \
    ovseg bundle --proposer toy --clip "$out/adapter/last.ckpt" --out "$out/segmenter" --short_side 128 --ensemble_weight 0.9
step after "6/7 Test with the adapted CLIP" \
    ovseg test --config conf/toy/test.yaml "${data[@]}" --model.segmenter "$out/segmenter" \
    --trainer.default_root_dir "$out/after"

printf '\n== 7/7 Segment a scene into your words: %s\n' "$words"
ovseg segment --model "$out/segmenter" --images "$out/world/val2017/000000000001.jpg" --vocabulary "$words" \
    --out "$out/segmented"

python - "$out" <<'PYTHON'
import csv, sys
from pathlib import Path

rows = {"miou_union": "mIoU, all 24 nouns", "miou_union_seen": "mIoU, 16 seen", "miou_union_unseen": "mIoU, 8 unseen"}
tests = {}
for name in ("before", "after"):
    file = max(Path(sys.argv[1], name).rglob("metrics.csv"))
    with file.open() as lines:
        tests[name] = list(csv.DictReader(lines))[-1]
print(f"\n{'on 100 benchmark scenes, in %':28}{'plain CLIP':>12}{'adapted':>10}")
for key, title in rows.items():
    print(f"{title:28}" + "".join(f"{100 * float(tests[name][f'test/{key}']):>{width}.1f}" for name, width in (("before", 12), ("after", 10))))
PYTHON
printf '\nLook at %s, and at the logs of the adaptation: tensorboard --logdir %s\n' "$out/segmented/000000000001_overlay.png" "$out"
printf 'Took %d min %d s after the installation.\n' $((SECONDS / 60)) $((SECONDS % 60))
