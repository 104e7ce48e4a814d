"""The run that evaluations are of, with random parameters."""

import pathlib

import pytest

from ghn_jax.runs.run import load_run
from ghn_jax.runs.task import load_data
from tests.small_run import write_run


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> pathlib.Path:
    return write_run(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def run(workdir):
    return load_run(workdir)


@pytest.fixture(scope='module')
def dataset(run):
    return load_data(run.config)
