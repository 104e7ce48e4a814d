#!/usr/bin/env bash
# Creates a Cloud TPU VM (one machine), sets it up, trains there, and deletes it when the training has ended well.
#   bash launch/tpu_vm.sh --name=NAME --zone=ZONE --type=v4-8 --config=configs/X.py --workdir=gs://BUCKET/RUN
#     [--project=P] [--runtime=VERSION] [--spot] [--queued] [--keep] [--dry_run] [--config.key=value ...]
# --workdir: in a bucket that the machine's account may write to, or an absolute path of a disk that outlives it.
# --spot: cheaper, may be taken away at any time; --queued: wait until a TPU is free. --keep: do not delete. --dry_run
# prints the commands and runs none. After an interruption run it again: training goes on from the last checkpoint.
# One process drives all chips of the machine; their number must divide --config.train.meta_batch.
# It needs the gcloud command, logged in, with a project that has TPU quota. Never run on a TPU so far.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/remote.sh"
tpu_arguments "${BASH_SOURCE[0]}" v4-8 "$@"
tpu_run
