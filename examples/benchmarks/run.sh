#!/usr/bin/env bash
# Runs every benchmark, ccaco and the other tool alternately, and writes the results into RESULTS.md beside this script.
# usage: bash examples/benchmarks/run.sh [--device cuda] [--quick] [OPTION...]     (options go to every script)
set -euo pipefail
cd "$(dirname "$0")/../.."
. examples/environment.sh bench
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
for topic in infonce every_pair evaluation vectors retrieve serve library scaling step finetune process pipeline embed locked token_cache noisy_pairs; do
  echo "benchmark: $topic" >&2
  python "examples/benchmarks/$topic.py" "$@"
done
if [ -d runs/first ]; then
  python examples/benchmarks/tokens.py "$@"
else
  echo "benchmark: tokens skipped, because it needs a trained run: ccaco train --dataset scenes --name first" >&2
fi
python examples/benchmarks/limits.py
