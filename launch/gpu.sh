#!/usr/bin/env bash
# Trains on the NVIDIA GPUs of this machine: one process drives all of them. On several machines run it on each, with
# the three flags below, the same --workdir (a folder all see, or gs://bucket/run) and the same overrides.
#   bash launch/gpu.sh --config=FILE --workdir=DIR [--gpus=0,1] [--dry_run] [--config.key=value ...]
#     [--coordinator=HOST:PORT --num_processes=N --process_id=I]
# --gpus: which of this machine's, as in CUDA_VISIBLE_DEVICES; default all. --dry_run prints the commands, runs none.
# The number of GPUs must divide --config.train.meta_batch; with --config.devices.images=K, K of them share the images
# of each network. Run again it goes on from the last checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/remote.sh"

gpus='' coordinator='' processes='' process=''
for arg in "$@"; do
    case "$arg" in
        --gpus=*) gpus="${arg#*=}" ;;
        --coordinator=*) coordinator="${arg#*=}" ;;
        --num_processes=*) processes="${arg#*=}" ;;
        --process_id=*) process="${arg#*=}" ;;
        *) common_argument "$arg" "${BASH_SOURCE[0]}" ;;
    esac
done
required config workdir
[[ "$gpus" =~ ^([0-9]+(,[0-9]+)*)?$ ]] || fail "--gpus=$gpus: expected numbers, as in --gpus=0,1"
if [ -n "$coordinator$processes$process" ]; then
    [[ "$coordinator" =~ ^.+:[0-9]+$ ]] || fail "--coordinator=$coordinator: expected HOST:PORT of process 0"
    [[ "$processes" =~ ^[1-9][0-9]*$ ]] || fail "--num_processes=$processes: expected how many machines"
    [[ "$process" =~ ^[0-9]+$ ]] && [ "$process" -lt "$processes" ] ||
        fail "--process_id=$process: expected 0..$((processes - 1)), another one on each machine"
    overrides+=("--coordinator=$coordinator" "--num_processes=$processes" "--process_id=$process")
fi

# Drivers are the machine's; CUDA libraries come with the Python packages.
if [ -z "$dry_run" ] && ! command -v nvidia-smi >/dev/null; then
    fail 'nvidia-smi is not there: expected a machine with an NVIDIA GPU and its driver'
fi
run nvidia-smi --list-gpus
workdir="$(absolute "$workdir")" # `environment` goes into the repository
config="$(absolute_config)"
run environment "$(extras cuda)"
[ -z "$gpus" ] || run export CUDA_VISIBLE_DEVICES="$gpus"
run python -m ghn_jax.train --config="$config" --workdir="$workdir" ${overrides[@]+"${overrides[@]}"}
