"""How long a program would take on a GPU that is not here: a model, from its text and what it is given.

A kernel takes a launch, and a bit of the device's memory and arithmetic; a loop whose length is data, and a
conditional, make the host wait for a value of the device. Nothing of it overlaps in the model, so it says
which of these rules and what a change saves, not how fast a device is.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

from ghn_jax.aot import program_costs
from ghn_jax.aot.hlo import Computation, Instruction, Module

LAUNCH_S = 4e-6  # of a kernel
TRIP_S = 20e-6  # a value from the device to the host, and the next launch
_TURNS = re.compile(r'"known_trip_count":\{"n":"(?P<n>\d+)"\}')
_SCOPE = re.compile(r'op_name="(?P<name>[^"]*)"')

Turns = Callable[[str], float | None]
Shares = Callable[[str, int], Sequence[float] | None]


@dataclasses.dataclass(frozen=True)
class Work:
    """What a device has to do: kernels, values that the host waits for, bytes moved, operations."""

    launches: float = 0
    trips: float = 0
    bytes: float = 0
    flops: float = 0

    def __add__(self, other: 'Work') -> 'Work':
        return Work(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    def __mul__(self, times: float) -> 'Work':
        return Work(*(times * a for a in dataclasses.astuple(self)))

    def seconds(self, speed: Mapping[str, float], peak: str) -> dict[str, float]:
        """Return the seconds of each term.

        Args:
          speed: of the device, as a target has it: 'bytes' and operations by type, a second.
          peak: the type.
        """
        return {
            'launches': self.launches * LAUNCH_S,
            'host': self.trips * TRIP_S,
            'bytes': self.bytes / speed['bytes'],
            'flops': self.flops / speed[peak],
        }


def work(module: Module, turns: Turns, shares: Shares) -> Work:
    """Return the work of a pass through a program.

    Args:
      module: the program.
      turns: (scope of a loop) -> how often it turns, asked where the program does not say; None is taken for
        once. A scope is the path of the JAX functions around it, as `jit(step)/while/body/cond`.
      shares: (scope of a conditional, number of branches) -> the share of the times that each branch is
        taken; None is taken for equal shares.
    """

    @functools.cache
    def of(computation: str) -> Work:
        known = module.computations.get(computation, {})
        return sum((own(each, known) + called(each) for each in known.values()), start=Work())

    def own(each: Instruction, known: Computation) -> Work:
        if program_costs.is_free(each):
            return Work()
        return Work(1, 0, program_costs.moved(module, each, known), program_costs.flops(module, each, known))

    def called(each: Instruction) -> Work:
        calls = dict(each.calls)
        if each.opcode == 'while':
            fixed = _TURNS.search(each.attributes)
            count = float(fixed['n']) if fixed else turns(scope(each))
            count = 1.0 if count is None else count
            test = Work() if fixed else (of(calls['condition']) + Work(trips=1)) * (count + 1)
            return of(calls['body']) * count + test
        if each.opcode == 'conditional':
            branches = [of(name) for _, name in each.calls]
            if each.calls[0][0] == 'true_computation':  # the text has the one of 1 first
                branches.reverse()
            taken = shares(scope(each), len(branches)) or [1 / len(branches)] * len(branches)
            return sum((b * share for b, share in zip(branches, taken)), start=Work(trips=1))
        if each.opcode in ('call', 'async-start'):
            return sum((of(name) for how, name in each.calls if how in ('calls', 'to_apply')), start=Work())
        return Work()

    return of(module.entry)


def scope(each: Instruction) -> str:
    """Return the path of the JAX functions that an instruction comes from; '' where the text has none."""
    found = _SCOPE.search(each.attributes)
    return found['name'] if found else ''
