# Sourced by examples/quickstart.sh, tests/run.sh and .ci/wheel: activates an environment with ccaco; makes .venv when there is none.
# usage: . examples/environment.sh EXTRA      (run in the root of the project)
if [ -z "${VIRTUAL_ENV:-}" ]; then
  if [ ! -x .venv/bin/python ]; then
    echo "making .venv (first time only; about 2 minutes and 6 GB)" >&2
    "${PYTHON:-python3}" -m venv .venv
  fi
  . .venv/bin/activate
fi
stamp="$VIRTUAL_ENV/.ccaco-$1"
if [ ! "$stamp" -nt pyproject.toml ]; then
  python -m pip install --quiet --disable-pip-version-check -e ".[$1]"
  touch "$stamp"
fi
