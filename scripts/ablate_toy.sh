#!/usr/bin/env bash
# Runs the paper's ablations in miniature: adapts the toy world's CLIP by every method, with three seeds each, and evaluates
# each on held-out scenes. Tables and their numbers go to runs/ablation. Finished steps are not repeated: delete the folder
# after changing the shipped weights.
#   ./scripts/ablate_toy.sh            the paper's rows: prompts, fine-tuning, both, controls
#   ./scripts/ablate_toy.sh sweeps     prompt depth, shared prompts, how regions are resized, ensemble weight, mask threshold
#   ./scripts/ablate_toy.sh mining     captions per scene, masks, filters: quality of the pairs, and what CLIP learns from them
#   ./scripts/ablate_toy.sh regions    crops, mean pooling and a single pass; recipes of training; the cascade's curve
set -euo pipefail
cd "$(dirname "$0")/.."
case "$*" in
    "" | sweeps | mining | regions) ;;
    *)
        echo "ablate_toy.sh does not know '$*'; give nothing, sweeps, mining or regions" >&2
        exit 2
        ;;
esac
. scripts/setup.sh
case "${1:-}" in
    mining) exec python scripts/mine_toy.py ;;
    regions)
        python scripts/ablate_regions.py
        exec python scripts/ablate_cascade.py
        ;;
    sweeps) exec python scripts/sweep_toy.py ;;
    *) exec python scripts/ablate_toy.py ;;
esac
