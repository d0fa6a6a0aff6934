#!/usr/bin/env bash
# Checks and measures everything on one GPU, in at most twenty minutes; results go to sections of RESULTS.md that name the GPU.
# usage: bash examples/benchmarks/gpu.sh            without a GPU: bash examples/benchmarks/gpu.sh --device cpu --quick
# LIMIT=SECONDS changes the time for everything. A topic for which no time remains is named at the end.
set -uo pipefail
cd "$(dirname "$0")/../.."
. examples/environment.sh bench || exit
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
options=("$@")
[ $# -gt 0 ] || options=(--device cuda)
failed=()
limit="${LIMIT:-1200}"
SECONDS=0
topic() { # SECONDS TOPIC OPTIONS...: a topic that fails or takes too long is named at the end, and the others run
  local left=$((limit - SECONDS))
  echo "benchmark: ${*:2}; $left s remain" >&2
  if [ "$left" -le 0 ]; then
    failed+=("$2 (no time)")
    return
  fi
  timeout --kill-after=10 "$((left < $1 ? left : $1))" \
    python "examples/benchmarks/$2.py" "${@:3}" "${options[@]}" || failed+=("$2")
}
topic 90 copies
topic 120 equality
topic 240 resume
topic 60 step_profile
topic 120 step --size 224 --batch 512
topic 60 evaluation
topic 60 shortlists
topic 120 infonce --batch 32768 --alone 65536,131072
topic 180 embed --models ViT-B-32 --size 224 --count 4096 --peer-precision bf16 --peer-batches 64,256,512,1024
topic 240 step --size 224 --batch 512 --torchcompile 1
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
