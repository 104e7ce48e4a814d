"""The page on models of one's own says what can be run, from its first line to its last."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import venv

import numpy as np
import pytest
from safetensors import safe_open

import ghn_jax
from tests.small_run import ROOT, command

PAGE = (ROOT / 'docs/your-model.md').read_text()
NETS = '# nets.py\n'


def python_blocks(page: str = PAGE) -> list[str]:
    return re.findall(r'^```python\n(.*?)^```', page, re.S | re.M)


def commands(page: str = PAGE) -> list[list[str]]:
    """The lines of shell on the page that run this package: module and arguments."""
    lines = re.findall(r'^    python -m (ghn_jax\..*)$', page, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def section(name: str) -> str:
    return re.split(r'^## ', PAGE.partition(f'## {name}\n')[2], maxsplit=1, flags=re.MULTILINE)[0]


def write_nets(folder: pathlib.Path) -> None:
    (nets,) = (block for block in python_blocks() if block.startswith(NETS))
    (folder / 'nets.py').write_text(nets)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """Where the reader of the page is, with the file that it tells to write."""
    write_nets(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'nets', raising=False)
    return tmp_path


def test_the_model_of_the_page_is_traced_as_the_page_says(folder):
    import nets  # type: ignore[import-not-found]

    (line,) = re.findall(r'^model = (ghn_jax\.trace\(.*?\)\))', PAGE, re.MULTILINE)
    model = eval(line, {'ghn_jax': ghn_jax, 'Net': nets.Net})
    convolutions = [f'Conv_{i}.kernel' for i in range(7)]
    assert [layer.parameter for layer in model.layers] == [*convolutions, 'Dense_0.kernel']
    of = '--model=nets:net', '--models=nets:net', '--arch=net.json', '--archs=net.json'
    assert all(set(of) & set(words) for words in commands())


@pytest.mark.slow
def test_the_commands_and_the_code_of_the_page_run_from_top_to_bottom(folder):
    pytest.importorskip('flatbuffers')
    scores = []
    for module, *arguments in commands():
        if (
            '--arch=net.json' in arguments or '--archs=net.json' in arguments
        ):  # minutes: `studies.one_network`
            continue
        code, out, err = command(module, *arguments)
        assert code == 0, err
        if module == 'ghn_jax.evaluate':
            scores.append([float(line.split('|')[4].split()[0]) for line in out.splitlines()[2:4]])
    assert {'net.safetensors', 'net.stablehlo', 'net8.stablehlo'} <= set(os.listdir(folder))
    predicted, calibrated, initial = scores
    assert min(predicted) > initial[0] and min(calibrated) > initial[0]
    with safe_open(folder / 'net.safetensors', 'np') as file:
        assert 'packed' in file.metadata()
    names: dict = {}
    logits = []
    for block in python_blocks():
        if not block.startswith(NETS):
            exec(block, names)
            logits.append(np.asarray(names['logits']))
    assert {x.shape for x in logits} == {(64, 10)}
    np.testing.assert_allclose(logits[-1], logits[1], atol=0.05 * np.abs(logits[1]).max())  # in StableHLO
    assert 0 < np.abs(logits[0] - logits[1]).max() < 2 * np.abs(logits[0]).max()


@pytest.mark.slow
def test_from_pip_install_to_a_file_in_an_environment_of_its_own(tmp_path):
    """With a wheel of this tree; what it needs is downloaded, as the page's first line does."""
    walk = section('From a model to a file')
    (extras,) = re.findall(r"^    pip install '\.(\[.*\])'$", walk, re.MULTILINE)
    venv.create(tmp_path / 'venv', with_pip=True)
    python, nets = tmp_path / 'venv/bin/python', tmp_path / 'nets'
    nets.mkdir()
    run = lambda *words: subprocess.run([python, *words], cwd=nets, capture_output=True, text=True, env=ENV)
    built = run('-m', 'pip', 'wheel', '--no-deps', '--wheel-dir', str(tmp_path), str(ROOT))
    if built.returncode:
        pytest.skip(f'no packages can be downloaded here: {built.stderr[-200:]}')
    (wheel,) = tmp_path.glob('*.whl')
    done = run('-m', 'pip', 'install', '-c', str(ROOT / 'constraints.txt'), f'{wheel}{extras}')
    assert done.returncode == 0, done.stderr
    write_nets(nets)
    for words in commands(walk):
        done = run('-m', *words)
        assert done.returncode == 0, done.stderr
    done = run('-c', python_blocks(walk)[1] + 'print(ghn_jax.__file__, logits.shape)')
    assert str(tmp_path / 'venv') in done.stdout and '(64, 10)' in done.stdout, done.stderr
    assert (nets / 'net.stablehlo').is_file() and (nets / 'net.safetensors').is_file()


ENV = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'VIRTUAL_ENV')}
