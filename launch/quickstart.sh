#!/usr/bin/env bash
# From a fresh clone to a result: makes the environment, trains a small GHN through 4-bit quantization and the same
# GHN in float, and scores both on networks that neither has seen. About ten minutes on two CPU cores.
#   bash launch/quickstart.sh [--workdir=DIR] [--config.key=value ...]
# Run again it goes on where it stopped; remove DIR (runs/quickstart) to start afresh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

workdir=runs/quickstart
overrides=()
for arg in "$@"; do
    case "$arg" in
        --workdir=*) workdir="${arg#--workdir=}" ;;
        --config.*=*) overrides+=("$arg") ;;
        -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "error: unexpected argument '$arg': expected --workdir=DIR or --config.key=value" >&2; exit 2 ;;
    esac
done
case "$workdir" in
    *://*) echo "error: --workdir=$workdir: cloud storage is not supported yet: give a directory" >&2; exit 2 ;;
    /* | '~'*) ;;
    *) workdir="$PWD/$workdir" ;;
esac

environment

# Bits are data to the compiled program, so training in float compiles nothing more.
for bits in w4a4 float; do
    [ "$bits" = float ] && name=float || name=qat
    echo "== training, $bits"
    python -m ghn_jax.train --config=configs/quickstart.py --workdir="$workdir/$name" \
        --config.quant.bits="$bits" ${overrides[@]+"${overrides[@]}"}
done

# Networks that neither has seen; 5 batches of 60 are all 300 test images.
scoring=(--splits=test --bits=w32a32,w8a8,w4a8,w4a4,w2a2 --num_networks=50 --batch_size=60)
echo '== unseen networks, trained in float'
python -m ghn_jax.evaluate --workdir="$workdir/float" "${scoring[@]}" --json="$workdir/float.json"
echo '== unseen networks, trained through 4-bit quantization, against trained in float'
python -m ghn_jax.evaluate --workdir="$workdir/qat" "${scoring[@]}" --json="$workdir/qat.json" \
    --against="$workdir/float.json" --plot="$workdir/accuracy.png"
