# The environment all commands share: `.venv` in the repository, made once and reused until `pyproject.toml` or
# `constraints.txt` changes. Source this file, then call:  environment [EXTRA]   (test, cuda, tpu; several: tpu,gcs)
# It changes into the repository and puts the environment's `python` first in PATH. Needs `set -o pipefail`.
# Of another Python it is an environment of its own: `GHN_JAX_PYTHON=3.12` takes .venv-3.12 and constraints-3.12.txt.

repository="$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)" # whatever the working directory is later
venv=".venv${GHN_JAX_PYTHON:+-$GHN_JAX_PYTHON}"
constraints="constraints${GHN_JAX_PYTHON:+-$GHN_JAX_PYTHON}.txt"

_find_python() {
    local candidate wanted="${GHN_JAX_PYTHON:-}"
    local candidates=(python3.11 python3.12 python3.13 python3 python)
    [ -z "$wanted" ] || candidates=("python$wanted")
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys
version, wanted = sys.version_info, sys.argv[1]
sys.exit(wanted != "%d.%d" % version[:2] if wanted else version < (3, 11))' "$wanted" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python ${wanted:->= 3.11} found (looked for ${candidates[*]}):" \
        'install one, or set PYTHON to its path' >&2
    return 2
}

# What the environment is made from: it is made anew where this changes.
_fingerprint() {
    "$1" -c 'import hashlib, pathlib, sys
data = b"".join(pathlib.Path(p).read_bytes() for p in ("pyproject.toml", sys.argv[1]))
print(hashlib.sha256(data).hexdigest(), sys.version.split()[0])' "$constraints"
}

environment() {
    local extra="${1:-}" python stamp
    cd "$repository" || return
    if [ ! -f "$constraints" ]; then
        echo "error: GHN_JAX_PYTHON=$GHN_JAX_PYTHON: there is no $constraints; leave it out, or give 3.12" >&2
        return 2
    fi
    # One script at a time: another may be making the same environment. The lock is that of descriptor 9.
    python="$venv/bin/python"
    [ -x "$python" ] || python="$(_find_python)" || return
    exec 9>"$venv.lock"
    "$python" -c 'import fcntl
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for another script, which makes the same environment", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)' || true # a file system without locks
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python="$(_find_python)" || return
        echo "making $venv with $("$python" --version)"
        if ! "$python" -m venv --clear "$venv" >&2; then
            echo "error: $python cannot make a virtual environment:" \
                "install its venv module (Debian, Ubuntu: python3-venv), or set PYTHON to another Python" >&2
            return 2
        fi
    fi
    stamp="$(_fingerprint "$venv/bin/python")" || return
    if ! grep -qxF "$stamp" "$venv/installed-${extra:-base}" 2>/dev/null; then
        echo "installing into $venv (once; a few minutes)"
        # The log says more; here one line for every ten packages.
        if ! "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
            -c "$constraints" -e ".${extra:+[$extra]}" 2>&1 | tee "$venv/install.log" | awk '
                /^Collecting / && ++n % 10 == 0 { print "  " n " packages found"; fflush() }
                /^Installing collected/ { print "  unpacking"; fflush() }'; then
            tail -n 5 "$venv/install.log" >&2
            echo "error: the installation failed (above, and in $venv/install.log); run the command again" >&2
            return 1
        fi
        echo "$stamp" >"$venv/installed-${extra:-base}"
        echo "$stamp" >"$venv/installed-base" # every extra includes it
    fi
    exec 9>&-
    export PATH="$PWD/$venv/bin:$PATH"
}

# The packages that a Python lacks of those that pyproject.toml names, of those that these need in turn, and of the
# extra's plugin of JAX.
_missing() {
    "$1" -c 'import importlib.metadata, pathlib, sys, tomllib
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
known = {}
def there(name):
    if name not in known:
        try:
            known[name] = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            known[name] = None
        look(known[name] or [])
    return known[name] is not None
def look(lines):
    for need in map(Requirement, lines):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            there(need.name)
look(tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["dependencies"])
missing = sorted(name for name in known if known[name] is None)
plugins = {"cuda": ("jax-cuda12-plugin", "jax-cuda13-plugin"), "tpu": ("libtpu",)}.get(sys.argv[1], ())
print(*missing, *([" or ".join(plugins)] if plugins and not any(map(there, plugins)) else []))' "$2"
}

# Sets `python` to the Python that is there ($PYTHON or python3) where it has all it needs; else `environment EXTRA`.
# $1: EXTRA. $2: a folder of wheels that are put beside what it has; '' for none, and then nothing is installed.
environment_there() {
    local there="${PYTHON:-python3}" missing site
    cd "$repository" || return
    if [ -n "$2" ]; then
        site="$(mktemp -d)"
        "$there" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$2"/*.whl || return
        export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
    fi
    missing="$(_missing "$there" "$1" 2>/dev/null)" || missing='a Python of 3.11 or newer'
    python=python
    if [ -z "$missing" ]; then
        python="$there"
    elif [ -n "$2" ]; then
        echo "error: $there still lacks $missing: put their wheels into $2, too" >&2
        return 2
    else
        environment "$1"
    fi
}
