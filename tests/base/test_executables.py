"""A compiled function comes back from the disk without being traced, and only where it is the same one."""

import functools
import importlib
import pathlib
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base import executables, paths, recipes
from ghn_jax.base.errors import FieldError
from ghn_jax.base.recipes import Recipe
from ghn_jax.training.compiled import training_step
from ghn_jax.training.optimizer import make_optimizer
from tests.small_run import ROOT

TRACED = []


@functools.partial(jax.jit, static_argnames='factor', donate_argnums=1)
def scaled(x, y, *, factor):
    TRACED.append(factor)
    return {'sum': factor * x + y, 'count': jnp.sum(x)}


@pytest.fixture
def folder(tmp_path):
    settings = {
        'jax_compilation_cache_dir': str(tmp_path / 'cache'),
        'jax_persistent_cache_min_compile_time_secs': 1e9,  # JAX's own cache keeps nothing here
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield tmp_path / 'cache'
    for name, value in before.items():
        jax.config.update(name, value)


def call(n=3, *, factor=2, named='a', made_by=()):
    """The results, and how often it was traced for them."""
    scaled.clear_cache()
    before = len(TRACED)
    arguments = lambda: (np.arange(float(n)), jnp.ones(n))
    recipe = Recipe(function=scaled, static={'factor': factor}, named=named, made_by=made_by)
    function = executables.find_or_compile(recipe, arguments())
    results = [jax.device_get(function(*arguments())) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *results)
    np.testing.assert_array_equal(results[0]['sum'], factor * np.arange(n) + 1)
    return len(TRACED) - before


def test_a_second_start_traces_nothing(folder):
    assert [call(), call()] == [1, 0]
    assert len(list(folder.glob('scaled-*.executable'))) == 1


def test_another_function_type_or_machine_is_compiled(folder, monkeypatch):
    call()
    assert call(4) == 1 and call(factor=3, named='b') == 1
    monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
    assert call() == 1
    monkeypatch.undo()
    assert call() == 0


def test_other_source_is_compiled(folder, tmp_path, monkeypatch):
    (tmp_path / 'maker.py').write_text('def make(): return 1')
    monkeypatch.syspath_prepend(tmp_path)
    maker = importlib.import_module('maker')
    assert [call(made_by=(maker.make,)) for _ in range(2)] == [1, 0]
    (tmp_path / 'maker.py').write_text('def make(): return 2')
    assert [call(made_by=(maker.make,)), call()] == [1, 1]


def test_an_edit_counts_where_a_training_step_imports_it(monkeypatch):
    read = pathlib.Path.read_bytes

    def digest(edited):
        path = ROOT / 'ghn_jax' / edited
        assert path.is_file()
        monkeypatch.setattr(
            pathlib.Path, 'read_bytes', lambda self: read(self) + (b'# edited' if self == path else b'')
        )
        return recipes._source((training_step, make_optimizer))

    before = digest('__init__.py')
    for edited in ('reporting/tables.py', 'training/loop.py', 'base/cli.py', 'config.py', 'cnn/reference.py'):
        assert digest(edited) == before, edited
    for edited in ('cnn/executor.py', 'cnn/ops.py', 'hypernet/gnn.py', 'quant/grid.py', 'datasets/load.py',
                   'training/step.py', 'training/compiled.py', 'training/optimizer.py'):  # fmt: skip
        assert digest(edited) != before, edited


def test_those_not_used_for_longest_are_removed(folder, monkeypatch):
    monkeypatch.setattr(executables, '_MOST', 2)
    assert [call(1), call(2), call(1), call(3)] == [1, 1, 0, 1]
    assert len(list(folder.glob('*.executable'))) == 2
    assert [call(1), call(3), call(2)] == [0, 0, 1]


@pytest.mark.parametrize('damage', [lambda b: b[:-9], lambda b: b'', lambda b: b[:40] + b'x' + b[41:]])
def test_a_damaged_file_is_written_anew(folder, damage):
    call()
    (file,) = folder.glob('scaled-*.executable')
    file.write_bytes(damage(file.read_bytes()))
    assert [call(), call()] == [1, 0]


def test_a_damaged_file_is_not_tried_again_where_it_is_not_written_anew(folder, monkeypatch):
    call()
    (file,) = folder.glob('scaled-*.executable')
    file.write_bytes(file.read_bytes()[:-9])
    monkeypatch.setattr(executables, '_save', lambda *_: None)
    call()
    assert not file.exists()


def test_entries_of_jax_that_a_full_disk_cut_short_are_removed_and_no_others(folder):
    folder.mkdir()
    block, pack = executables._BLOCK, lambda n: zlib.compress(np.random.default_rng(n).bytes(n))
    fill = next(n for n in range(block, 0, -1) if len(pack(n)) == block)  # ends with a block, and whole
    entries = {
        'empty-cache': b'', 'cut-cache': pack(3 * block)[: 2 * block], 'fits-cache': pack(fill),
        'whole-cache': pack(3 * block), 'cut-atime': b'', 'cut': b'',
    }  # fmt: skip
    for name, data in entries.items():
        (folder / name).write_bytes(data)
    (folder / 'folder-cache').mkdir()
    executables.drop_torn(folder)
    assert {path.name for path in folder.iterdir()} == {
        'fits-cache', 'whole-cache', 'cut-atime', 'cut', 'folder-cache'
    }  # fmt: skip
    executables.drop_torn(folder / 'absent')


def test_another_users_file_that_cannot_be_removed_is_left_without_a_word(folder, monkeypatch, capsys):
    """In a folder of all where each removes only its own."""
    monkeypatch.setattr(executables, '_MOST', 1)
    call(1)
    unlink = pathlib.Path.unlink

    def unlink_own(path, **how):
        if path.suffix == '.executable':
            raise PermissionError(1, 'not permitted')
        unlink(path, **how)

    monkeypatch.setattr(pathlib.Path, 'unlink', unlink_own)
    call(2)
    assert len(list(folder.glob('*.executable'))) == 2 and not capsys.readouterr().err


def test_what_comes_from_the_cache_of_jax_is_not_written_again(folder, monkeypatch):
    monkeypatch.setattr(executables.counters, 'cache_hits', iter(range(9)).__next__)
    assert [call(), call()] == [1, 1] and not list(folder.glob('scaled-*.executable'))


def test_nor_is_it_by_a_later_run_of_the_same_process(folder, monkeypatch):
    """Which compiles nothing, and reads nothing from the cache: JAX still holds what it had read."""
    monkeypatch.setattr(executables.counters, 'cache_hits', iter(range(2)).__next__)
    call()
    monkeypatch.undo()
    arguments = np.arange(3.0), jnp.ones(3)
    executables.find_or_compile(Recipe(function=scaled, static={'factor': 2}, named='a'), arguments)
    assert not list(folder.glob('scaled-*.executable'))


def test_a_folder_that_cannot_be_written_is_said(folder, capsys):
    folder.write_text('a file')
    assert [call(), call()] == [1, 1]
    assert 'cannot be written' in capsys.readouterr().err


PART = """
import sys
import jax
import numpy as np
jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_compilation_cache_dir', sys.argv[1])
from ghn_jax.assembly import mesh as devices
from ghn_jax.base import executables
from ghn_jax.base.recipes import Recipe
traced = []
def double(x):
    traced.append(x)
    return 2 * x
for count in (1, 2, 3, 4):
    mesh = devices.mesh_of(jax.devices()[:count], 1)
    x = devices.replicate(mesh, np.arange(3.0))
    y = executables.find_or_compile(Recipe(function=jax.jit(double), static={}, named='double'), (x,))(x)
    assert y.tolist() == [0, 2, 4] and len(y.sharding.device_set) == count
print(len(traced))
"""


def test_a_part_of_the_devices_is_enough(tmp_path):
    run = [sys.executable, '-c', PART, str(tmp_path)]
    done = [subprocess.run(run, cwd=ROOT, capture_output=True, text=True) for _ in range(2)]
    assert [(each.returncode, each.stdout) for each in done] == [(0, '4\n'), (0, '0\n')], done[1].stderr


def test_a_cache_of_jax_in_the_cloud_is_no_folder_here(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jax.config.update('jax_compilation_cache_dir', 'gs://bucket/cache')
    jax.config.update('jax_enable_compilation_cache', False)  # JAX itself would go there
    try:
        assert [call(), call()] == [1, 1] and not list(tmp_path.iterdir())
    finally:
        jax.config.update('jax_enable_compilation_cache', True)


def test_nothing_is_kept_where_nothing_is_to_be(folder):
    jax.config.update('jax_compilation_cache_dir', None)
    assert [call(), call()] == [1, 1] and not folder.exists()


# ---- compiled ahead


@pytest.fixture
def ahead(folder, tmp_path, monkeypatch):
    """A folder with `scaled` for three numbers, compiled ahead; it is read from until the test ends."""
    monkeypatch.delenv('XLA_FLAGS', raising=False)  # of the tests
    recipe = Recipe(function=scaled, static={'factor': 2}, named='a')
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = [jax.ShapeDtypeStruct((3,), jnp.float32, sharding=device)] * 2
    executables.write(tmp_path / 'ahead', recipe, tuple(shapes), scaled.lower(*shapes, factor=2).compile())
    executables.read_from(tmp_path / 'ahead')
    yield tmp_path / 'ahead'
    executables.read_from(None)


def test_what_was_compiled_ahead_from_shapes_is_loaded_and_not_traced(folder, ahead, capsys):
    assert call() == 0 and not folder.exists() and not capsys.readouterr().err
    jax.config.update('jax_compilation_cache_dir', None)  # it needs no cache
    assert call() == 0


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (dict(jax='9.9.9'), 'it is for jax 0'),
        (dict(device='1 x TPU v4 (0)'), 'it is for device 1 x cpu (0), here is 1 x TPU v4 (0)'),
        (dict(flags='--xla_a=1'), 'it is for flags (none), here is --xla_a=1'),
        (dict(source='x'), 'it is of other source code'),
        (dict(static='x'), 'it is of another program'),
        (dict(arguments='x'), 'it takes arguments of other shapes'),
        (dict(arguments='x', python='2.7'), 'it is for python 3'),  # the first of several
    ],
)
def test_what_does_not_fit_is_said_in_a_line_and_compiled_anew(ahead, monkeypatch, capsys, change, said):
    facts_of = recipes.facts_of
    monkeypatch.setattr(recipes, 'facts_of', lambda *a: facts_of(*a) | change)
    assert call() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(ahead) in line and said in line and line.endswith(': compiled anew')


def test_of_several_programs_compiled_ahead_the_nearest_is_named(ahead, capsys):
    (file,) = ahead.iterdir()
    other = file.read_bytes().replace(b'"device": "1 x cpu (0)"', b'"device": "8 x TPU v4 (0)"')
    (ahead / 'scaled-0.executable').write_bytes(other)
    assert call(4) == 1
    assert 'other shapes' in capsys.readouterr().err


@pytest.mark.parametrize('damage', [lambda b: b[:-9], lambda b: b.replace(b'cpu', b'gpu'), lambda b: b'{}'])
def test_a_damaged_file_compiled_ahead_is_said_and_left_alone(ahead, capsys, damage):
    (file,) = ahead.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert call() == 1 and file.exists()
    assert 'is damaged, or this device cannot run it: compiled anew' in capsys.readouterr().err


def test_a_folder_without_another_function_or_any_is_said(ahead, tmp_path, capsys):
    (file,) = ahead.iterdir()
    file.rename(ahead / 'other-1.executable')
    assert call() == 1 and 'there is no scaled: compiled anew' in capsys.readouterr().err
    with pytest.raises(FieldError, match=r'executables=.*holds no \*\.executable'):
        executables.read_from(tmp_path / 'absent')


def test_a_folder_in_a_bucket_is_one_too(folder, cloud, capsys):
    recipe = Recipe(function=scaled, static={'factor': 2}, named='a')
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = [jax.ShapeDtypeStruct((3,), jnp.float32, sharding=device)] * 2
    compiled = scaled.lower(*shapes, factor=2).compile()
    with pytest.raises(FieldError, match=r'executables=gs://.*holds no \*\.executable'):
        executables.read_from(cloud)
    executables.write(paths.place(cloud, 'out'), recipe, tuple(shapes), compiled)
    executables.read_from(cloud)
    try:
        assert call() == 0 and not capsys.readouterr().err
        assert call(4) == 1 and 'it takes arguments of other shapes' in capsys.readouterr().err
    finally:
        executables.read_from(None)
