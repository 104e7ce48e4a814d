"""The environment that the scripts of launch/ make: once, of the Python that is there, with what it lacks."""

import os
import shutil
import subprocess
import sys

from tests.small_run import ROOT

MAKES = r"""#!/usr/bin/env bash
# In the place of python: it makes environments of itself, and takes a while to install into them.
case "$*" in
    -c*) exec "$REAL" "$@" ;;
    *"-m venv"*) mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python" ;;
    *"pip install"*) echo begins >>log; sleep 1; echo ends >>log ;;
esac
"""


def test_two_scripts_at_once_make_one_environment_once(tmp_path):
    (tmp_path / 'launch').mkdir()
    for file in ('launch/environment.sh', 'pyproject.toml', 'constraints.txt'):
        shutil.copy(ROOT / file, tmp_path / file)
    python = tmp_path / 'python'
    python.write_text(MAKES)
    python.chmod(0o755)
    command = [
        'bash',
        '-c',
        'set -euo pipefail; source launch/environment.sh; environment; command -v python',
    ]
    env = os.environ | {'PYTHON': str(python), 'REAL': sys.executable, 'GHN_JAX_PYTHON': ''}
    both = [
        subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [script.communicate(timeout=60)[0] for script in both]
    assert all(script.returncode == 0 for script in both)
    assert (tmp_path / 'log').read_text().split() == ['begins', 'ends']
    assert all(text.endswith(f'{tmp_path}/.venv/bin/python\n') for text in said)
    assert sum('waiting for another script' in text for text in said) == 1


def environment_there(python, *args):
    """What `environment_there` makes of a Python: the one it takes, or its error."""
    script = 'set -euo pipefail; source launch/environment.sh; environment_there "$@"; echo "$python"'
    done = subprocess.run(
        ['bash', '-c', script, 'bash', *args], cwd=ROOT, env=os.environ | {'PYTHON': str(python)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout.strip(), done.stderr


LACKS = """#!/usr/bin/env bash
# In the place of python: it installs what it is told to, and lacks a package.
echo "$*" >>"${0%/*}/calls"
[[ "$*" == *"-m pip"* ]] || echo "$MISSING"
"""


def test_a_python_that_has_all_packages_is_taken_as_it_is_and_wheels_are_put_beside(tmp_path, monkeypatch):
    python = tmp_path / 'python'
    python.write_text(LACKS)
    python.chmod(0o755)
    (tmp_path / 'a.whl').touch()
    monkeypatch.setenv('MISSING', '')
    assert environment_there(python, '', '') == (0, str(python), '')
    assert environment_there(python, '', str(tmp_path)) == (0, str(python), '')
    installed = [call for call in (tmp_path / 'calls').read_text().splitlines() if '-m pip' in call]
    assert len(installed) == 1 and '--no-index' in installed[0] and 'a.whl' in installed[0]
    monkeypatch.setenv('MISSING', 'jraph')
    code, out, err = environment_there(python, '', str(tmp_path))
    assert (code, out, err.count('\n')) == (2, '', 1) and 'still lacks jraph' in err


def test_what_a_python_lacks_is_found_out():
    script = 'source launch/environment.sh; _missing "$0" "$1"'
    for extra, lacking in (('', ''), ('tpu', 'libtpu')):
        command = ['bash', '-c', script, sys.executable, extra]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, '')
        assert done.stdout.strip() in {lacking, ''}  # where libtpu is installed, nothing lacks


def found_python(tmp_path, **environment):
    done = subprocess.run(
        ['bash', '-c', 'source launch/environment.sh; _find_python'], cwd=ROOT,
        env={'PATH': f'{tmp_path}:{os.environ["PATH"]}', **environment}, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip() or done.stderr.strip()


def test_a_python_of_another_version_than_asked_for_is_not_taken(tmp_path):
    own = '{}.{}'.format(*sys.version_info)
    # The one that is named is taken, also where a version is asked for and no such name is in PATH.
    assert found_python(tmp_path, PYTHON=sys.executable) == sys.executable
    assert found_python(tmp_path, PYTHON=sys.executable, GHN_JAX_PYTHON=own) == sys.executable
    refused = found_python(tmp_path, PYTHON=sys.executable, GHN_JAX_PYTHON='3.99')
    assert refused.startswith(f'error: no Python 3.99 found (looked for {sys.executable})')
    spaced = tmp_path / 'a b'
    spaced.symlink_to(sys.executable)
    assert found_python(tmp_path, PYTHON=str(spaced)) == str(spaced)
    # A name says little.
    (tmp_path / 'python3.99').symlink_to(sys.executable)
    assert 'no Python 3.99 found (looked for python3.99)' in found_python(tmp_path, GHN_JAX_PYTHON='3.99')


def test_a_python_without_pinned_versions_is_refused():
    env = os.environ | {'GHN_JAX_PYTHON': '3.99'}
    script = 'source launch/environment.sh; environment test'
    done = subprocess.run(['bash', '-c', script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'constraints-3.99.txt' in done.stderr
    assert not (ROOT / '.venv-3.99').exists()
