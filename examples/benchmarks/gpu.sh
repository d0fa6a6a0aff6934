#!/usr/bin/env bash
# Checks and measures everything on one GPU, in about twenty minutes; results go to sections of RESULTS.md that name the GPU.
# usage: bash examples/benchmarks/gpu.sh            without a GPU: bash examples/benchmarks/gpu.sh --device cpu --quick
set -uo pipefail
cd "$(dirname "$0")/../.."
. examples/environment.sh bench || exit
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
options=("$@")
[ $# -gt 0 ] || options=(--device cuda)
failed=()
topic() { # a topic that fails is named at the end, and the others run
  echo "benchmark: $*" >&2
  timeout 600 python "examples/benchmarks/$1.py" "${@:2}" "${options[@]}" || failed+=("$1")
}
topic copies
topic equality
topic resume
topic step_profile
topic step --size 224 --batch 512
topic step --size 224 --batch 512 --torchcompile 1
topic infonce --batch 32768 --alone 65536,131072
topic embed --models ViT-B-32 --size 224 --count 4096 --peer-precision bf16 --peer-batches 64,256,512,1024
topic evaluation
topic shortlists
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
