#!/usr/bin/env bash
# Trains the networks of the toy world that ship with the package, from nothing, in about 100 minutes on 2 CPU cores: 47 for
# CLIP (3,125 and 1,500 steps, 1.65 a second on idle cores), 48 for the proposals (6,500 steps, beside lighter work), and
# the drawing of windows. The parts were run one by one.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

# train CONFIG FOLDER FLAGS …: goes on where an interrupted run stopped
train() {
    local config=$1 folder=$2
    shift 2
    [ -e "$folder/last.ckpt" ] && set -- "$@" --ckpt_path "$folder/last.ckpt"
    ovseg fit --config "$config" --trainer.default_root_dir "$folder" "$@"
}

python scripts/toy_tokenizer.py conf/toy/clip
train conf/toy/pretrain_clip.yaml runs/toy/clip        # from close views, by which it learns nouns
train conf/toy/scenes_clip.yaml runs/toy/scenes_clip   # then whole scenes; texts stay, so that proposals fit both
train conf/toy/proposals.yaml runs/toy/proposals --model.clip.model runs/toy/scenes_clip/last.ckpt
# the weight was chosen on the benchmark scenes of seed 77, which nothing else uses
ovseg bundle --proposals runs/toy/proposals/last.ckpt --clip runs/toy/scenes_clip/last.ckpt --out src/ovseg/weights/toy \
    --short_side 128 --ensemble_weight 0.9
python scripts/toy_card.py 20 && python scripts/toy_card.py 200   # the numbers of the card
