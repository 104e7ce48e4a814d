#!/usr/bin/env bash
# Runs the tests in the shared environment. Arguments go to pytest:
#   bash launch/test.sh                          all but the slow ones
#   bash launch/test.sh -m slow tests/cnn -x     any pytest arguments
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment test
# A file stays in one process, so that its tests share what they compile; -n 0 runs all in this one.
exec python -m pytest -n auto --maxprocesses=4 --dist=loadfile "$@"
