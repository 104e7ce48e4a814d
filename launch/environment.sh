# The environment all commands share: `.venv` in the repository, made once and reused until `pyproject.toml` or
# `constraints.txt` changes. Source this file, then call:  environment [EXTRA]   (test, cuda, tpu; several: tpu,gcs)
# It changes into the repository and puts the environment's `python` first in PATH. Needs `set -o pipefail`.

_find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python >= 3.11 found (looked for ${PYTHON:-python3.11, python3.12, python3.13, python3}):" \
        'install one, or set PYTHON to its path' >&2
    return 2
}

# What the environment is made from: it is made anew where this changes.
_fingerprint() {
    "$1" -c 'import hashlib, pathlib, sys
data = b"".join(pathlib.Path(p).read_bytes() for p in ("pyproject.toml", "constraints.txt"))
print(hashlib.sha256(data).hexdigest(), sys.version.split()[0])'
}

environment() {
    local extra="${1:-}" python stamp
    cd "$(dirname "${BASH_SOURCE[0]}")/.." || return
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python="$(_find_python)" || return
        echo "making .venv with $("$python" --version)"
        if ! "$python" -m venv --clear .venv >&2; then
            echo "error: $python cannot make a virtual environment:" \
                "install its venv module (Debian, Ubuntu: python3-venv), or set PYTHON to another Python" >&2
            return 2
        fi
    fi
    stamp="$(_fingerprint .venv/bin/python)" || return
    if ! grep -qxF "$stamp" ".venv/installed-${extra:-base}" 2>/dev/null; then
        echo "installing into .venv (once; a few minutes)"
        # The log says more; here one line for every ten packages.
        if ! .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off \
            -c constraints.txt -e ".${extra:+[$extra]}" 2>&1 | tee .venv/install.log | awk '
                /^Collecting / && ++n % 10 == 0 { print "  " n " packages found"; fflush() }
                /^Installing collected/ { print "  unpacking"; fflush() }'; then
            tail -n 5 .venv/install.log >&2
            echo 'error: the installation failed (above, and in .venv/install.log); run the command again' >&2
            return 1
        fi
        echo "$stamp" >".venv/installed-${extra:-base}"
        echo "$stamp" >.venv/installed-base # every extra includes it
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}
