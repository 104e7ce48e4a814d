#!/usr/bin/env bash
# What is run first on a machine with a GPU or a TPU (on a CPU, too): checks its numbers, measures its speed, tries
# compiler flags and, where a config is given, trains for the minutes that are left.
#   bash launch/first_hour.sh [--minutes=12] [--out=DIR] [--config=FILE [--config.key=value ...] [--unpack=FILE]]
#     [--executables=DIR] [--golden=DIR] [--wheels=DIR] [--dry_run]
# DIR (runs/first_hour) gets first_hour.json, log.txt, a profile, the pack of the training and its metrics.
# --unpack: of `ghn_jax.train --pack`. --executables: of `ghn_jax.compile --out`. --golden: numbers of the published
# GHN-2; shared/golden, here or beside the repository, is taken without it.
# The Python that is there (python3, or $PYTHON) is used if it has JAX and all that pyproject.toml names; else .venv is
# made. --wheels: packages that it lacks, for a machine that reaches no package index, are put beside what it has.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/remote.sh"

out=runs/first_hour wheels='' golden='' arguments=()
for arg in "$@"; do
    case "$arg" in
        --minutes=*) arguments+=("$arg") ;;
        --out=*) out="${arg#*=}" ;;
        --wheels=*) wheels="$(absolute "${arg#*=}")" ;;
        --golden=*) golden="$(absolute "${arg#*=}")" ;;
        --executables=*) arguments+=("--executables=$(absolute "${arg#*=}")") ;;
        --unpack=*) arguments+=("--unpack=$(absolute "${arg#*=}")") ;;
        --workdir=*) fail "unexpected argument '$arg': results go to --out=DIR" ;;
        *) common_argument "$arg" "${BASH_SOURCE[0]}" ;;
    esac
done
[[ "$out" != *://* ]] || fail "--out=$out: give a directory"
[ -n "$dry_run" ] || [ -z "$wheels" ] || compgen -G "$wheels/*.whl" >/dev/null ||
    fail "--wheels=$wheels: there are no *.whl files"
out="$(absolute "$out")"
config="$(absolute_config)"
cd "$repository"
[ -z "$config" ] || arguments+=("--config=$config")
for candidate in shared/golden ../shared/golden; do
    [ -n "$golden" ] || [ ! -d "$candidate" ] || golden="$(realpath "$candidate")"
done
[ -z "$golden" ] || arguments+=("--golden=$golden")

extra=''
if command -v nvidia-smi >/dev/null; then extra=cuda; elif [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ]; then extra=tpu; fi
python=python
run environment_there "$extra" "$wheels"
run "$python" -m ghn_jax.first_hour --out="$out" ${arguments[@]+"${arguments[@]}"} ${overrides[@]+"${overrides[@]}"}
