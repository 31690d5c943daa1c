#!/usr/bin/env bash
# Trains the networks of the toy world that ship with the package, from nothing: about an hour on 2 CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

python scripts/toy_tokenizer.py conf/toy/clip
ovseg fit --config conf/toy/pretrain_clip.yaml
ovseg toy --out runs/toy/world --scenes 8000 --val_scenes 200
ovseg fit --config conf/toy/proposals.yaml
ovseg bundle --proposals runs/toy/proposals/last.ckpt --clip runs/toy/clip/last.ckpt --out src/ovseg/weights/toy \
    --short_side 128
ovseg test --config conf/toy/test.yaml --trainer.default_root_dir runs/toy/test
