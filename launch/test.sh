#!/usr/bin/env bash
# Runs the tests in the shared environment. Arguments go to pytest:
#   bash launch/test.sh                          all but the slow ones
#   bash launch/test.sh -m slow tests/cnn -x     any pytest arguments
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment test
exec python -m pytest "$@"
