#!/usr/bin/env bash
# The paper's ablations in small: adapts the toy world's CLIP in every way, three times each, and scores each on scenes
# that nothing was ever chosen on. Tables go to runs/ablation/*.md, their numbers beside them; what is finished is not repeated:
# delete the folder after a change of the shipped weights.
#   ./scripts/ablate_toy.sh            rows of the paper: prompts, fine-tuning, both, controls
#   ./scripts/ablate_toy.sh sweeps     prompt depth, shared prompts, how regions are resized, ensemble weight, mask threshold
#   ./scripts/ablate_toy.sh mining     captions a scene, proposals or true masks, filters: how good pairs are, and CLIP
set -euo pipefail
cd "$(dirname "$0")/.."
case "$*" in
    "" | sweeps | mining) ;;
    *)
        echo "ablate_toy.sh does not know '$*'; give nothing, sweeps or mining" >&2
        exit 2
        ;;
esac
. scripts/setup.sh
case "${1:-}" in
    mining) exec python scripts/mine_toy.py ;;
    sweeps) exec python scripts/sweep_toy.py ;;
    *) exec python scripts/ablate_toy.py ;;
esac
