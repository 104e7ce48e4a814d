"""What an object knows is said where it is made, and nobody else sets it."""

import ast
import inspect
import pathlib

import pytest

import ghn_jax
from ghn_jax.training.run_logger import FileLogger, RunLogger, SilentLogger

PACKAGE = pathlib.Path(ghn_jax.__file__).parent
FILES = [*PACKAGE.glob('training/*.py'), *PACKAGE.glob('benchmarks/*.py')]


def assigned(node):
    """(name of the object, attribute) of every assignment inside."""
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
            yield ast.unparse(each.value), each.attr


@pytest.mark.parametrize('file', FILES, ids=lambda file: f'{file.parent.name}/{file.name}')
def test_attributes_are_born_in_init_and_set_by_their_own_object(file):
    tree = ast.parse(file.read_text())
    assert {owner for owner, _ in assigned(tree)} <= {'self'}
    for each in ast.walk(tree):
        if isinstance(each, ast.ClassDef):
            methods = {f.name: {name for _, name in assigned(f)} for f in each.body if hasattr(f, 'args')}
            born = methods.get('__init__', set())
            assert not set().union(*methods.values()) - born, each.name


@pytest.mark.parametrize('logger', [FileLogger, SilentLogger])
def test_a_logger_has_every_method_that_the_loop_calls(logger):
    methods = {name: f for name, f in vars(RunLogger).items() if inspect.isfunction(f) and name[0] != '_'}
    assert len(methods) == 6
    for name, method in methods.items():
        assert inspect.signature(getattr(logger, name)) == inspect.signature(method), name
