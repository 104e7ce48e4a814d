#!/usr/bin/env bash
# Runs the tests in the shared environment. Arguments go to pytest:
#   bash launch/test.sh                          all but the slow ones
#   bash launch/test.sh --quick                  under two minutes: the files that tests/quick.txt lists
#   bash launch/test.sh -m slow tests/cnn -x     any pytest arguments
#   bash launch/test.sh -m slow tests/mutation   how many small changes of the code the tests notice
#   bash launch/test.sh --python=3.12 --quick    with Python 3.12 and its JAX, in .venv-3.12
set -euo pipefail
if [[ "${1:-}" == --python=* ]]; then
    export GHN_JAX_PYTHON="${1#*=}"
    shift
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment test
[ "${1:-}" != --quick ] || set -- @tests/quick.txt "${@:2}"
# A file stays in one process, so that its tests share what they compile; -n 0 runs all in this one. One more
# than there are cores, for some tests wait for processes of their own. tests/conftest.py puts long files first.
processes="$(python -c 'import os; print(min(4, os.cpu_count() + 1))')"
exec python -m pytest -n "$processes" --dist=loadfile --no-loadscope-reorder "$@"
