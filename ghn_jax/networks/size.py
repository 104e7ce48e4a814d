"""How many parameters a network has, by formula: samplers ask for every candidate, so nothing is built.

All modules count, also those that `none` ops cut off from the logits (as published; those are no nodes).
"""

import functools
import math
from typing import NamedTuple

from ghn_jax.networks.ops import alone
from ghn_jax.networks.spec import IMAGE_SIZE, VIT_SIZE, NetworkSpec


def count_parameters(spec: NetworkSpec) -> int:
    """Scalars in all parameter tensors: convolutions, norms, linear layers, positional encoding."""
    C, bn, vit, widths = spec.C, 2 if spec.norm is not None else 0, spec.is_vit, spec.widths
    if vit:
        total, c0, c1, size = 27 * C + VIT_SIZE**2 * C, C, C, VIT_SIZE
    elif spec.stem_type == 0:
        c0 = c1 = 3 * C if spec.preproc else C
        total, size = 3 * spec.ks**2 * c1 + bn * c1, IMAGE_SIZE // 2 if spec.stem_pool else IMAGE_SIZE
    else:
        total = 3 * spec.ks**2 * (C // 2) + 9 * (C // 2) * C + 9 * C * C + bn * (C // 2 + 2 * C)
        c0, c1, size = C, C, IMAGE_SIZE // 2
    for i, width in enumerate(widths):
        reduction = spec.is_reduction(i)
        if spec.preproc:
            total += (c0 + c1 + 2 * bn) * width  # a strided preprocessing has two halves: the same count
        entries, concat = spec.genotype.cell(reduction)
        for op, source in entries:
            total += cost(op, width, strided=reduction and not vit and source < 2, norm=bn > 0).parameters
        c0, c1 = c1, width * len(concat)
        size = (size + 1) // 2 if reduction and not vit else size
    features = c1 if spec.glob_avg else c1 * size * size
    hidden = [spec.fc_dim] if spec.fc_layers == 2 else []
    outs = [*hidden, spec.num_classes]
    return total + sum((n_in + 1) * n_out for n_in, n_out in zip([features, *hidden], outs, strict=True))


class Cost(NamedTuple):
    """What an operation takes.

    parameters: scalars, of all tensors.   dense: of these, scalars of dense kernels and linear weights.
    operations: of the forward pass, also those that are no nodes.   kernel: pixels on its longest side.
    dense_tiles, depth_tiles: positions of dense and of depthwise kernels, which a hypernetwork decodes.
    """

    parameters: int
    dense: int
    operations: int
    kernel: int
    dense_tiles: int
    depth_tiles: int


@functools.lru_cache(maxsize=4096)
def cost(op: str, width: int, *, strided: bool = False, norm: bool = True) -> Cost:
    """What an operation on `width` channels takes; width, as all of an operation's, even."""
    net = alone(op, width, strided=strided, norm=norm)
    shapes = [shape for i in range(len(net.kind)) for _, shape in net.tensors(i)]
    weights = [shape for shape in shapes if len(shape) > 1]
    depthwise = [shape for shape in weights if len(shape) == 4 and shape[1] == 1]
    scalars = lambda shapes: sum(map(math.prod, shapes))
    tiles = lambda shapes: sum(math.prod(shape[2:]) for shape in shapes)
    return Cost(
        parameters=scalars(shapes),
        dense=scalars(weights) - scalars(depthwise),
        operations=len(net.kind) - 1,  # without the input
        kernel=max((size for shape in weights for size in shape[2:]), default=1),
        dense_tiles=tiles(weights) - tiles(depthwise),
        depth_tiles=tiles(depthwise),
    )
