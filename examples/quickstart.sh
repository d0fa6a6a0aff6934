#!/usr/bin/env bash
# Installs into .venv when needed, then runs prepare -> train -> embed -> report -> retrieve on generated images.
# usage: bash examples/quickstart.sh [FOLDER [OPTION...]]
#   FOLDER (default: quickstart) receives all output; OPTIONs go to ccaco train, for example --epochs 2
set -euo pipefail
cd "$(dirname "$0")/.."
. examples/environment.sh test

out=${1:-quickstart}
shift || true
if [ -e "$out" ]; then
  echo "$out exists already; to run the quickstart again: rm -r $out" >&2
  exit 2
fi
mkdir -p "$out"
cd "$out"

run() { printf '\n$ ccaco %s\n' "$*" >&2; ccaco "$@"; }
run prepare scenes --format table
run train --dataset scenes --alpha 1 --beta 0.5 --name first --format table "$@"
run embed --run runs/first --dataset scenes --index scenes.idx
run report runs/first --stages --format table
run retrieve "an orange cat napping" --index scenes.idx -k 5 --format table --save napping-cats.png
run retrieve "a dog chasing a ball" "a ball chasing a dog" --index scenes.idx -k 5 --format csv --save who-chases-whom.png >who-chases-whom.csv

printf '\nImages to open:\n  %s\n  %s\n' "$PWD/napping-cats.png" "$PWD/who-chases-whom.png"
