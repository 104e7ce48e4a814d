"""The parts of a first hour, in their order: what each does, and in which process."""

import functools
import itertools
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ghn_jax.benchmarks.profile import waits
from ghn_jax.bringup import flag_sets, machine, numbers, profiling, scoring, steps, training
from ghn_jax.bringup.runner import Part
from ghn_jax.bringup.settings import LARGEST, PROFILE, Settings
from ghn_jax.bringup.steps import Steps, timed

NETWORKS = 20  # that are scored
_PROFILED = 10  # steps
MACHINE, TRAINING, FLAGS = 'machine', 'training', 'flags-'
Results = Iterator[dict[str, Any]]


def _machine(settings: Settings, seconds: float) -> Results:
    found = machine.describe()
    yield found
    yield found | {'tflops': machine.products()}


def _programs(settings: Settings, seconds: float) -> Results:
    """The run's own programs, found or compiled: a step through the first, then scoring of a few networks."""
    run = Steps(steps.from_random(settings.config))
    with_first = run.first(*next(run.own(1)))
    yield {'training': with_first}
    scored = scoring.Scoring(settings.config, NETWORKS)
    yield {'training': with_first, 'scoring': {'first_s': scored.seconds(scoring.BITS[:1])}}


def _numbers(settings: Settings, seconds: float) -> Results:
    checks: list[dict[str, Any]] = []
    for each in numbers.check(settings.golden):
        checks.append(each)
        yield {'good': all(check['good'] for check in checks), 'checks': checks}


def _speed(variant: str, settings: Settings, seconds: float) -> Results:
    yield from timed(Steps(steps.variant(settings.config, variant)), seconds=seconds / 4)


def _cost(settings: Settings, seconds: float) -> Results:
    """Steps through the run's own program, as a run does them: what they take of memory, host and time."""
    run = Steps(steps.from_random(settings.config))
    ahead = run.own(2 * _PROFILED + 2)
    found = run.first(*next(ahead))
    yield found
    waited, stepped = waits(itertools.islice(ahead, _PROFILED + 1), lambda item: run.run(*item))
    share = sum(waited) / (sum(waited) + sum(stepped))
    found |= run.rates(stepped) | {'share_waiting_for_host': share}
    yield found
    rest = list(ahead)
    profile = profiling.profile(lambda: [run.run(*item) for item in rest], settings.out / PROFILE)
    yield found | {'profile': profile}


def _evaluation(settings: Settings, seconds: float) -> Results:
    scored = scoring.Scoring(settings.config, NETWORKS)
    found = {'first_s': scored.seconds(scoring.BITS[:1])}
    yield found
    yield found | scored.figures(scored.seconds())


def _training(settings: Settings, seconds: float) -> Results:
    found = training.train_for(settings, seconds)
    yield found | ({} if found['pack_bytes'] <= LARGEST else {'note': f'the pack is over {LARGEST:,} bytes'})


# Name -> (weight, function). A weight is a share of the time; a part that ends early leaves what remains of
# its share to those after it.
_PARTS: Mapping[str, tuple[float, Callable[[Settings, float], Results]]] = {
    MACHINE: (3, _machine),
    'programs': (18, _programs),
    'numbers': (24, _numbers),
    **{f'speed-{name}': (6, functools.partial(_speed, name)) for name in steps.VARIANTS},
    FLAGS: (5, functools.partial(_speed, 'w4a4')),  # each set
    'cost': (9, _cost),
    'evaluation': (8, _evaluation),
    TRAINING: (14, _training),
}


def function_of(name: str) -> Callable[[Settings, float], Results]:
    """Return the function of a part: called with settings and its seconds, it yields all that it has found so
    far, again whenever that is more.
    """
    return _PARTS[FLAGS if name.startswith(FLAGS) else name][1]


def first(settings: Settings) -> Part:
    """Return the part that the others depend on: it finds out the platform."""
    return _part(MACHINE, settings)


def others(settings: Settings, platform: str, environment: Mapping[str, str]) -> list[Part]:
    """Return the parts that follow, in their order.

    Args:
      settings: of all of them.
      platform: as JAX names it: cpu, gpu or tpu; '' where it is not known: then no flags are tried.
      environment: the variables there are.
    """
    found = []
    for name in _PARTS:
        if name == FLAGS:
            sets = flag_sets.environments(platform, environment)
            found += [_part(FLAGS + each, settings, variables) for each, variables in sets.items()]
        elif name != MACHINE and (name != TRAINING or settings.train):
            found.append(_part(name, settings))
    return found


def _part(name: str, settings: Settings, environment: Mapping[str, str] = types.MappingProxyType({})) -> Part:
    weight = _PARTS[FLAGS if name.startswith(FLAGS) else name][0]
    module = [sys.executable, '-m', 'ghn_jax.bringup.process']
    return Part(
        name=name, weight=weight, environment=environment,
        command=lambda seconds, result: [*module, name, str(seconds), str(result), settings.to_json()],
    )  # fmt: skip
