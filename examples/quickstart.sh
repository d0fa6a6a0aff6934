#!/usr/bin/env bash
# From nothing to a ranked answer: installs into .venv when needed, then prepare -> train -> embed -> retrieve -> report on generated pictures.
# usage: bash examples/quickstart.sh [FOLDER [OPTION...]]
#   FOLDER (default: quickstart) receives everything that is made; OPTIONs go to ccaco train, for example --epochs 2
set -euo pipefail
cd "$(dirname "$0")/.."
. examples/environment.sh test

out=${1:-quickstart}
shift || true
if [ -e "$out" ]; then
  echo "$out is there already; to run the quickstart anew: rm -r $out" >&2
  exit 2
fi
mkdir -p "$out"
cd "$out"

say() { printf '\n$ ccaco %s\n' "$*" >&2; ccaco "$@"; }
say prepare scenes --format table
say train --dataset scenes --alpha 1 --beta 0.5 --name first --format table "$@"
say embed --run runs/first --dataset scenes --index scenes.idx
say report runs/first --stages --format table
say retrieve "an orange cat napping" --index scenes.idx -k 5 --format table --save napping-cats.png
say retrieve "a dog chasing a ball" "a ball chasing a dog" --index scenes.idx -k 5 --format csv --save who-chases-whom.png >who-chases-whom.csv

printf '\nPictures to open:\n  %s\n  %s\n' "$PWD/napping-cats.png" "$PWD/who-chases-whom.png"
