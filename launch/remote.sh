# What gpu.sh, tpu_vm.sh, tpu_pod.sh and first_hour.sh share: arguments, errors, and commands that --dry_run prints.
# Source it; environment.sh comes with it.

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

config='' workdir='' dry_run='' overrides=()

fail() {
    echo "error: $*" >&2
    exit 2
}

# Runs a command, or prints it so that it can be pasted into a shell.
run() {
    if [ -n "$dry_run" ]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

# A path from the root, or one in a bucket as it is. Bash leaves the ~ of --flag=~/a to the script.
absolute() {
    case "$1" in
        /* | gs://*) echo "$1" ;;
        '~' | '~/'*) echo "$HOME${1#\~}" ;;
        *) echo "$PWD/$1" ;;
    esac
}

# --config as it is read in the repository: a file of the working directory from the root, a name as it is.
absolute_config() {
    if [ -f "$(absolute "$config")" ]; then absolute "$config"; else echo "$config"; fi
}

# An argument that all the scripts know; $2 is the script, whose first comment is its help.
common_argument() {
    case "$1" in
        --config=*) config="${1#*=}" ;;
        --workdir=*) workdir="${1#*=}" ;;
        --config.*=*) overrides+=("$1") ;;
        --dry_run) dry_run=1 ;;
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p;}' "$2"; exit 0 ;;
        *) fail "unexpected argument '$1': flags are written --name=value; see --help" ;;
    esac
}

# The named variables must have values.
required() {
    local name
    for name in "$@"; do
        [ -n "${!name}" ] || fail "--$name is missing; see --help"
    done
    [ -f "$(absolute "$config")" ] || [ -f "$repository/$config" ] || [ -f "$repository/configs/$config.py" ] ||
        fail "--config=$config: there is no such file: give one, or a name, as in --config=ghn_qat_cifar10"
    case "$workdir" in
        gs://?*/?*) ;;
        *://*) fail "--workdir=$workdir: expected a directory, or a run in a bucket, as in gs://bucket/run" ;;
    esac
}

# The extras that the environment needs: $1, and those of a bucket.
extras() {
    case "$workdir" in
        gs://*) echo "$1,gcs" ;;
        *) echo "$1" ;;
    esac
}

# ---- Cloud TPUs, with gcloud

name='' zone='' project='' type='' runtime='' spot='' queued='' keep=''
GCLOUD=${GCLOUD:-gcloud}

tpu_argument() {
    case "$1" in
        --name=*) name="${1#*=}" ;;
        --zone=*) zone="${1#*=}" ;;
        --project=*) project="${1#*=}" ;;
        --type=*) type="${1#*=}" ;;
        --runtime=*) runtime="${1#*=}" ;;
        --spot) spot=1 ;;
        --queued) queued=1 ;;
        --keep) keep=1 ;;
        *) common_argument "$@" ;;
    esac
}

# $1: the script, $2: a type of TPU as an example, then its arguments.
tpu_arguments() {
    local script="$1" example="$2" arg
    shift 2
    for arg in "$@"; do tpu_argument "$arg" "$script"; done
    tpu_check "$example"
}

# $@: flags for the training beside those of the user.
tpu_run() {
    tpu_create
    tpu_setup
    tpu_train "$@"
    # Only where all went well: `set -e` ends the script before, and the machine stays for a look.
    [ -n "$keep" ] || tpu_delete
}

tpu_check() {
    required name zone type config workdir
    [[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
        fail "--name=$name: expected lower-case letters, digits and dashes, as in --name=ghn"
    [[ "$zone" =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "--zone=$zone: expected a zone, as in --zone=us-central2-b"
    [[ "$type" =~ ^v[0-9]+[a-z]*-[0-9]+$ ]] || fail "--type=$type: expected a type of TPU, as in --type=$1"
    # What is on a TPU machine goes when it does.
    case "$workdir" in
        /* | gs://*) ;;
        *) fail "--workdir=$workdir: expected a run in a bucket, as in gs://bucket/run, or an absolute path of a" \
            "disk that outlives the TPU's machines" ;;
    esac
    runtime="${runtime:-tpu-ubuntu2204-base}"
    [ -n "$dry_run" ] || command -v "$GCLOUD" >/dev/null ||
        fail "$GCLOUD is not there: install the Google Cloud CLI, or set GCLOUD to its path"
    where=(--zone="$zone" ${project:+--project="$project"})
}

# What gcloud says of the request (--queued) or the machine: ACTIVE, READY, PREEMPTED, ... It fails where there is none.
tpu_state() {
    if [ -n "$queued" ]; then
        "$GCLOUD" compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)'
    else
        "$GCLOUD" compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)'
    fi
}

# A queued resource waits until there are TPUs; without --queued the request fails where there are none. What an
# interrupted run of the script has left is used again, or replaced where it was taken away.
tpu_create() {
    local state=''
    [ -n "$dry_run" ] || state="$(tpu_state 2>/dev/null)" || true
    case "$state" in
        FAILED | PREEMPTED | STOPPED | SUSPENDED | TERMINATED)
            tpu_delete
            state=''
            ;;
    esac
    if [ -n "$state" ]; then
        echo "$name is there ($state): going on with it"
    elif [ -n "$queued" ]; then
        run "$GCLOUD" compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
            --accelerator-type="$type" --runtime-version="$runtime" ${spot:+--spot}
    else
        run "$GCLOUD" compute tpus tpu-vm create "$name" "${where[@]}" --accelerator-type="$type" \
            --version="$runtime" ${spot:+--spot}
    fi
    [ -z "$queued" ] || [ -n "$dry_run" ] || tpu_wait
}

tpu_wait() {
    local state
    while true; do
        state="$(tpu_state)" || fail "$GCLOUD does not tell how the request for $type stands (above): start again"
        case "$state" in
            ACTIVE) return ;;
            FAILED | SUSPEND*)
                fail "the request for $type in $zone is $state: $GCLOUD compute tpus queued-resources describe" \
                    "$name ${where[*]} says why"
                ;;
        esac
        echo "waiting for $type in $zone ($state)"
        sleep 60
    done
}

tpu_ssh() {
    run "$GCLOUD" compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

# The working tree without its environment and runs, into ~/ghn_jax on every machine, and the environment there.
tpu_setup() {
    local archive="${TMPDIR:-/tmp}/ghn_jax-$name.tar.gz"
    run tar -czf "$archive" --exclude='./.venv*' --exclude=./.git --exclude=./runs -C "$repository" .
    run "$GCLOUD" compute tpus tpu-vm scp "$archive" "$name:ghn_jax.tar.gz" "${where[@]}" --worker=all
    tpu_ssh "mkdir -p ghn_jax && tar -xzf ghn_jax.tar.gz -C ghn_jax && cd ghn_jax &&
set -euo pipefail && source launch/environment.sh && environment $(extras tpu)"
}

# The same command on every machine. $@: more flags.
tpu_train() {
    local command
    printf -v command '%q ' .venv/bin/python -m ghn_jax.train --config="$config" --workdir="$workdir" "$@" \
        ${overrides[@]+"${overrides[@]}"}
    tpu_ssh "cd ghn_jax && $command"
}

tpu_delete() {
    if [ -n "$queued" ]; then
        run "$GCLOUD" compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
    else
        run "$GCLOUD" compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
    fi
}
