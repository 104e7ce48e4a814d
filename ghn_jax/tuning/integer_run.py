"""A network in fixed point, run with integers and shifts alone: the plain way, to check a device's numbers.

Layers multiply and sum integers in int32. A sum of products has as many bits behind the point as activation
and weight together; a bias is shifted to the left to these. What enters a layer is shifted to its format,
with rounding half to even, and cut off at its ends. Between layers values stay int32 (`shifts`).

The numbers are those of `Calibrated.apply` with the network's quantizer to the bit, as long as that is exact:
in float64, and in float32 where no value takes more than 24 bits.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.extend.core import Literal

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.folding import Calibrated
from ghn_jax.models.program import WITH_DERIVATIVES, FlatProgram, Step, body, flatten
from ghn_jax.models.recorder import Site
from ghn_jax.quant.policy import NamedWidths, Policy
from ghn_jax.tuning import shifts
from ghn_jax.tuning.fixed_point import point_of, round_to
from ghn_jax.tuning.shifts import ScaledInteger


def integer_logits(calibrated: Calibrated, policy: Policy, images: Any) -> ScaledInteger:
    """Compute the logits of a network in fixed point with integers and shifts.

    Args:
      calibrated: as `fixed_point.to_network` makes it.
      policy: its bits.
      images: [N, ...], as the model takes them. What a layer reads of them is rounded to its format first.

    Returns:
      int32 [N, classes], with their point.

    Raises:
      UserError: a network in another form, an operation that shifts cannot do, sums that may leave int32.
    """
    widths = resolve(policy, calibrated.model.graph)

    @jax.jit
    def run(images: Array) -> ScaledInteger:
        traced, given = calibrated.model.prepared(calibrated.params, images)
        folded = calibrated.folded(traced)
        (logits,) = _Interpreter(calibrated, widths, folded.sites).run(folded.program, given)
        return logits

    return jax.device_get(run(jnp.asarray(images)))


def _in_float(step: Step, operands: list[Any]) -> list[Any]:
    """Do a step in float: of constants now, of an image that no layer has read yet when the program runs."""
    known = not any(isinstance(v, Tracer) for v in operands)
    with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
        results = step.compute(operands)
    return results if step.eqn.primitive.multiple_results else [results]


class _Interpreter:
    """The layers of a network as integers.

    sites: by the slot of the step's result.   weights: levels and point, by the layer's name.
    formats: bits and point of activations, by `Site.reader`.
    """

    def __init__(self, calibrated: Calibrated, widths: NamedWidths, sites: Mapping[int, Site]):
        self.sites = sites
        self.weights: dict[str, tuple[np.ndarray, int]] = {}
        self.formats: dict[str, tuple[int, int]] = {}
        for site in sites.values():
            name, reader = site.layer.name, site.reader
            bits = widths[site.layer.parameter][0]
            point = point_of(calibrated.weight_ranges.get(name), bits, name)
            levels = np.asarray(calibrated.weights[name], np.float64) * 2.0**point
            if not np.array_equal(levels, np.clip(np.rint(levels), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)):
                raise UserError(f'the weight {name!r} is not on its levels of {bits} bits: quantize it first')
            self.weights[name] = levels.astype(np.int32), point
            bits = widths[reader][1]
            self.formats[reader] = bits, point_of(calibrated.ranges.get(reader), bits, reader)

    def run(self, program: FlatProgram, arguments: Sequence[Any], *, inside: bool = False) -> list[Any]:
        """Run the steps of a program; from the first layer on, values are integers.

        inside: the program is a part of a step, which has no layers.
        """
        values = dict(program.constants) | dict(zip(program.inputs, arguments, strict=True))
        read = lambda operand: operand.val if isinstance(operand, Literal) else values[operand]
        for k, step in enumerate(program.steps):
            operands, site = list(map(read, step.inputs)), None if inside else self.sites.get(k)
            if site is not None:
                results = [self.layer(step, site, operands)]
            elif not any(isinstance(v, ScaledInteger) for v in operands):
                results = _in_float(step, operands)
            elif step.primitive in WITH_DERIVATIVES:
                results = self.run(flatten(body(step.eqn), derivatives=False), operands, inside=True)
            else:
                results = [shifts.apply(step, operands)]
            values |= zip(step.outputs, results, strict=True)
        return [read(output) for output in program.outputs]

    def layer(self, step: Step, site: Site, operands: list[Any]) -> ScaledInteger:
        """Run a convolution or a product on integers."""
        x, (bits, point) = operands[site.activation], self.formats[site.reader]
        if isinstance(x, ScaledInteger):
            x = shifts.to_format(x, bits, point)
        else:  # of the image
            levels = (round_to(x, bits, point) * 2.0**point).astype(jnp.int32)
            x = ScaledInteger(levels, point, 2 ** (bits - 1))
        w, weight_point = self.weights[site.layer.name]
        bound = int(np.abs(w.astype(np.int64)).sum(tuple(range(1, w.ndim))).max()) * x.bound
        shifts.check(bound, step)
        operands[site.activation], operands[site.weight] = x.x, jnp.asarray(site.layout.to_operand(w))
        sums = shifts.bind(step, *operands, preferred_element_type=jnp.int32)
        return ScaledInteger(sums, x.point + weight_point, bound)
