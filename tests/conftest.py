"""What every test begins with: an environment of its own, and fixtures."""

import contextlib
import gc
import os
import pathlib
import types
import uuid
from collections.abc import Iterator

# What the machine sets for its own work would change what is computed, compiled and kept here, and a name
# that JAX does not know ends every test. Tests run on the CPU and set what they are about themselves. JAX
# reads this when it is imported; processes that tests start inherit it.
for _name in list(os.environ):
    if _name.startswith(('JAX_', 'XLA_', 'LIBTPU_')) or _name == 'GHN_JAX_CACHE':
        del os.environ[_name]
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import app  # noqa: E402, F401  it defines flags: before tests count those of a command

from tests import order, quick_compiler  # noqa: E402
from tests.emulator import emulated  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """The default tests, and processes that they start, compile in a hurry: most of their time is compiling.

    What is run with `-m slow` or any other `-m` is compiled as users have it.
    """
    if config.option.markexpr == 'not slow':
        os.environ['XLA_FLAGS'] = quick_compiler.FLAGS


def pytest_collection_finish() -> None:
    """Tracing makes many objects and hardly any garbage: Python is to look for it less often."""
    gc.freeze()
    gc.set_threshold(20_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = pathlib.Path(__file__).parent
    items.sort(key=lambda item: order.place_of(item.path.relative_to(here).as_posix()))


_COMPILES = [0]


def _count(event: str, seconds: float, **kwargs) -> None:
    _COMPILES[0] += event == '/jax/core/compile/backend_compile_duration'


# The event also fires for hits in the persistent cache, so counts do not depend on that cache.
jax.monitoring.register_event_duration_secs_listener(_count)


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
    """The folder of reference data beside the repository; the test is skipped where it is absent."""
    path = pathlib.Path(__file__).resolve().parents[2] / 'shared'
    if not path.is_dir():
        pytest.skip('../shared absent: this test needs the reference data beside the repository')
    return path


@pytest.fixture(scope='session')
def golden(shared: pathlib.Path) -> pathlib.Path:
    """Published GHN-2 parity data: the README.md there says what each file holds."""
    path = shared / 'golden'
    if not path.is_dir():
        pytest.skip('../shared/golden absent: this test needs the GHN-2 parity data')
    return path


@pytest.fixture(scope='session')
def bucket() -> Iterator[str]:
    """The address of a bucket of a storage emulator; the test is skipped where that is not installed."""
    with emulated() as address:
        yield address


@pytest.fixture
def cloud(bucket: str) -> str:
    """The address of a folder in a bucket that nothing else uses."""
    return f'{bucket}/{uuid.uuid4().hex}'


@pytest.fixture(scope='session')
def count_compiles():
    """A context manager: `with count_compiles() as c: ...` and then `c.n` programs were compiled.

    Operations outside jit count as well (each compiles once per shape): build the inputs before.
    """

    @contextlib.contextmanager
    def counting():
        counter, start = types.SimpleNamespace(n=0), _COMPILES[0]
        yield counter
        counter.n = _COMPILES[0] - start

    return counting


@pytest.fixture(scope='module')
def quick_reference():
    """The reference compiles many small pieces; optimising them takes longer than running them."""
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', before)
