#!/usr/bin/env bash
# Checks style and types and runs all tests, in .venv (made when there is none). Arguments go to pytest.
# Real photos and sounds are used when CCACO_REAL_DATA names their folder.
set -euo pipefail
cd "$(dirname "$0")/.."
. examples/environment.sh all
ruff check .
ruff format --check .
mypy
# one process per core with one thread each: processes that each compute on all cores wait for each other
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
pytest --numprocesses auto --dist loadfile "$@"
