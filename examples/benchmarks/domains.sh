#!/usr/bin/env bash
# Retrieval across domains: each of three emoji styles as the target, and coloured scenes -> sketches; five arms, three seeds.
# usage: CCACO_REAL_DATA=FOLDER bash examples/benchmarks/domains.sh [FOLDER]   (emoji only where CCACO_REAL_DATA holds emoji_styles)
#   FOLDER (default: domains) receives all output; the same command continues after an interruption.
set -euo pipefail
cd "$(dirname "$0")/../.."
. examples/environment.sh test
mkdir -p "${1:-domains}"
cd "${1:-domains}"

arms=source-only-cross,+adabn-cross,+mmd-cross,+dann-cross,+both-cross
shared=(--arms "$arms" --seeds 3 --metric text_to_image_R@10 --set domain.oracle=true --set model.image.size=48)

if [ -n "${CCACO_REAL_DATA:-}" ]; then
  [ -e data/emoji-styles ] || ccaco prepare emoji-styles --source "$CCACO_REAL_DATA/emoji_styles"
  for style in noto2018 twemoji fxemoji; do
    ccaco ablate --dataset emoji-styles --target-domain "$style" "${shared[@]}" --batch-size 64 --epochs 20 --name "emoji-$style"
    ccaco report "runs/emoji-$style" --table domains --metric text_to_image_R@10 --format markdown
    ccaco report "runs/emoji-$style" --table domains --metric class_accuracy --format markdown
  done
fi
for grey in 0.0 0.5; do # fraction of the training images that are turned grey
  name="scenes-sketch-$grey"
  ccaco ablate --dataset scenes-styles --source-domains colour --target-domain sketch "${shared[@]}" --set optim.steps=300 \
    --set model.image.grayscale=$grey --name "$name"
  ccaco report "runs/$name" --table domains --metric text_to_image_R@10 --format markdown
  ccaco report "runs/$name" --table domains --metric text_to_image_R@1 --format markdown
  ccaco report "runs/$name/source-only-cross-s0" "runs/$name/+both-cross-s0" --figure domains "$name.png"
done
