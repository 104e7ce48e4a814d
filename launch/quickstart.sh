#!/usr/bin/env bash
# From a fresh clone to a result: makes the environment, predicts the weights of a network with the GHN that comes with
# the package, then trains a small one through 4-bit quantization and beside it the same in float, and scores both on
# networks that neither has seen. Some five minutes on two CPU cores.
#   bash launch/quickstart.sh [--workdir=DIR] [--config.key=value ...]
# Run again it goes on where it stopped; remove DIR (runs/quickstart) to start afresh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

workdir=runs/quickstart
overrides=()
for arg in "$@"; do
    case "$arg" in
        --workdir=*) workdir="${arg#--workdir=}" ;;
        --config.quant.bits=*) echo "error: $arg: the two trainings of the quickstart set it" >&2; exit 2 ;;
        --config.*=*) overrides+=("$arg") ;;
        -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "error: unexpected argument '$arg': expected --workdir=DIR or --config.key=value" >&2; exit 2 ;;
    esac
done
case "$workdir" in
    '' | *://*) echo "error: --workdir=$workdir: expected a directory of this machine" >&2; exit 2 ;;
    /*) ;;
    '~' | '~/'*) workdir="$HOME${workdir#\~}" ;;
    *) workdir="$PWD/$workdir" ;;
esac

environment

echo '== no training yet: the GHN of the package predicts a network that it has never seen'
python launch/first.py

# A third of the steps of the config, which want a larger rate (docs/results.md). Both are rounded by the same rule, also
# when they are scored: they differ in what they were trained through. Bits are data to the compiled program, so the
# second training finds it in the cache.
training=(
    --config=configs/quickstart.py --config.train.steps=250 --config.log_every_steps=10
    --config.train.learning_rate=1e-2 --config.train.warmup_steps=30
    --config.quant.weight_range=sigma --config.quant.activation_range=sigma
    ${overrides[@]+"${overrides[@]}"}
)
log="$workdir/float.log"
mkdir -p "$workdir"

# Begins once the other training has compiled the program. In a process group of its own (set -m): Ctrl-C goes to the
# one on the screen, and what ends this script stops both, each with a checkpoint.
set -m
(
    # Where this script was killed, its trap did not run: nobody waits any more.
    until [ -s "$workdir/qat/metrics.jsonl" ]; do kill -0 $$ 2>/dev/null || exit; sleep 1; done
    exec python -m ghn_jax.train --workdir="$workdir/float" "${training[@]}" --config.quant.bits=float
) >"$log" 2>&1 &
float=$!
set +m
trap 'kill -- "-$float" 2>/dev/null || true; wait "$float" || true' EXIT

echo "== training through 4-bit quantization, and in float beside it (its lines: $log)"
echo '   the first step compiles the program of all networks: less than a minute, once'
python -m ghn_jax.train --workdir="$workdir/qat" "${training[@]}" --config.quant.bits=w4a4
if [ ! -s "$workdir/qat/metrics.jsonl" ]; then # the other would wait for it for ever
    echo "error: nothing was trained: give --config.train.steps=1 or more" >&2
    exit 2
fi
echo '== training in float'
wait "$float" || { code=$?; tail -n 5 "$log" >&2; exit "$code"; }
trap - EXIT
grep '^step' "$log" | tail -n 1 || true # none where it was trained before

# 5 batches of 60 are all 300 test images.
echo '== both on 50 networks that neither has seen: top-1 through 4-bit quantization, against top-1 in float'
python -m ghn_jax.evaluate --workdir="$workdir/qat" --against="$workdir/float" --splits=test \
    --bits=w32a32,w4a4,w2a2 --num_networks=50 --batch_size=60 \
    --json="$workdir/result.json" --plot="$workdir/accuracy.png"
