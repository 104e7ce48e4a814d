#!/usr/bin/env bash
# The same on a TPU pod slice: several machines, one process on each, that find each other (--coordinator=auto).
#   bash launch/tpu_pod.sh --name=NAME --zone=ZONE --type=v4-32 --config=configs/X.py --workdir=gs://BUCKET/RUN
#     [--project=P] [--runtime=VERSION] [--spot] [--queued] [--keep] [--dry_run] [--config.key=value ...]
# --workdir: in a bucket, or an absolute path that all machines share (Filestore): they write one checkpoint together,
# and process 0 the logs. The other flags are those of tpu_vm.sh.
# The number of chips, divided by --config.devices.images, must divide --config.train.meta_batch: a slice of 16 chips
# wants --config.train.meta_batch=16, or 8 with --config.devices.images=2. Never run on a TPU so far.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/remote.sh"
tpu_arguments "${BASH_SOURCE[0]}" v4-32 "$@"
tpu_run --coordinator=auto
