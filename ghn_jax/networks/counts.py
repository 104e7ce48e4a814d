"""What a network takes, counted by formula, and the most that one from outside may ask for.

Samplers count the parameters of every candidate, and networks of a file are judged before anything is made
from them, so nothing is built here. All modules count, also those that `none` ops cut off from the logits (as
published; those are no nodes).

The limits are far beyond the spaces' networks and keep a file from asking for terabytes or for days: a graph
has a matrix of all pairs of nodes, a hypernetwork decodes a tile of 16 KiB for each position of a kernel, and
each width has a program of its own, compiled for minutes.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from ghn_jax.base.errors import UserError, shown
from ghn_jax.networks.ops import OPERATIONS, alone
from ghn_jax.networks.spec import IMAGE_SIZE, VIT_SIZE, NetworkSpec

MAX_PARAMETERS = 200_000_000  # of a network; the spaces' widest have up to 160 million
MAX_OPERATIONS = 4096  # of a network: convolutions, norms, sums, ...; the spaces' have up to 1,400
MAX_TILES = 16_384  # that are decoded for a network: 256 MiB; the spaces' take up to 2,500
MAX_FAMILIES = 16  # widths in a file, with and without attention, where each needs a program; training has 7

_WIDTH = 16  # at which operations are measured: what is limited here depends on no width
_STEM, _HEAD = (9, 49 + 2 * 9), (6, 1)  # (operations, tiles), at most


def count_parameters(spec: NetworkSpec) -> int:
    """Count the scalars in all parameter tensors: convolutions, norms, linear layers, positional encoding."""
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


class OperationCost(NamedTuple):
    """What an operation takes.

    Attributes:
      parameters: scalars, of all tensors.
      dense: of these, scalars of dense kernels and linear weights.
      operations: of the forward pass, also those that are no nodes.
      kernel: pixels on its longest side.
      dense_tiles, depth_tiles: positions of dense and of depthwise kernels, which a hypernetwork decodes.
    """

    parameters: int
    dense: int
    operations: int
    kernel: int
    dense_tiles: int
    depth_tiles: int


@functools.lru_cache(maxsize=4096)
def cost(op: str, width: int, *, strided: bool = False, norm: bool = True) -> OperationCost:
    """Count what an operation on `width` channels takes; width, as all of an operation's, even."""
    net = alone(op, width, strided=strided, norm=norm)
    shapes = [shape for i in range(len(net.kind)) for _, shape in net.tensors(i)]
    weights = [shape for shape in shapes if len(shape) > 1]
    depthwise = [shape for shape in weights if len(shape) == 4 and shape[1] == 1]
    scalars = lambda shapes: sum(map(math.prod, shapes))
    tiles = lambda shapes: sum(math.prod(shape[2:]) for shape in shapes)
    return OperationCost(
        parameters=scalars(shapes),
        dense=scalars(weights) - scalars(depthwise),
        operations=len(net.kind) - 1,  # without the input
        kernel=max((size for shape in weights for size in shape[2:]), default=1),
        dense_tiles=tiles(weights) - tiles(depthwise),
        depth_tiles=tiles(depthwise),
    )


def bounds(spec: NetworkSpec) -> tuple[int, int]:
    """Bound a network's numbers of operations and of decoded tiles from above; dead branches count, too."""
    reductions = sum(map(spec.is_reduction, range(spec.n_cells)))
    totals = [a + b for a, b in zip(_STEM, _HEAD)]
    totals[1] += VIT_SIZE**2 if spec.is_vit else 0
    for reduction, cells in ((False, spec.n_cells - reductions), (True, reductions)):
        entries, _ = spec.genotype.cell(reduction)
        costs = [_preprocessing(), (1 + len(entries) // 2, 0), *(_cost(op) for op, _ in entries)]
        totals = [total + cells * sum(counts) for total, counts in zip(totals, zip(*costs))]
    return totals[0], totals[1]


def largest_kernel(spec: NetworkSpec) -> int:
    """Return the pixels on a side of the largest kernel, or of positional encodings; dead branches count."""
    kernels = (cost(op, spec.C).kernel for op in spec.genotype.ops)
    return max(VIT_SIZE if spec.is_vit else spec.ks, *kernels, 3 if spec.stem_type else 1)


def operations_of_cell(steps: int) -> int:
    """Bound the operations of a cell, of the longest convolutions, with so many intermediate states."""
    longest = max(_cost(name)[0] for name, op in OPERATIONS.items() if op.convolves)
    return _preprocessing()[0] + 1 + steps * (1 + 2 * longest)


def check_size(spec: NetworkSpec) -> None:
    """Raise UserError, naming the limit that a network is beyond, and the fields to change."""
    parameters = count_parameters(spec)
    if parameters > MAX_PARAMETERS:
        raise UserError(
            f'network {shown(spec.name)} has {parameters:,} parameters, more than {MAX_PARAMETERS:,}: '
            f'give a smaller C ({spec.C}), n_cells ({spec.n_cells}) or fc_dim ({spec.fc_dim}), or another '
            'genotype'
        )
    operations, tiles = bounds(spec)
    for what, count, most in (
        ('operations', operations, MAX_OPERATIONS),
        ('kernel positions to decode', tiles, MAX_TILES),
    ):
        if count > most:
            raise UserError(
                f'network {shown(spec.name)} has up to {count:,} {what}, more than {most:,}: give fewer '
                f'n_cells ({spec.n_cells}) or a genotype with fewer entries'
            )


def check_families(specs: Sequence[NetworkSpec]) -> None:
    """Raise UserError where networks that are to be run need too many programs."""
    widths = sorted({(spec.C, spec.is_vit) for spec in specs})
    if len(widths) > MAX_FAMILIES:
        shown_widths = ', '.join(str(C) for C, _ in widths[:4])
        raise UserError(
            f'the networks have {len(widths)} different widths ({shown_widths}, ...; with and without msa '
            f'counted apart), and each takes minutes to compile: give at most {MAX_FAMILIES} values of C at '
            'a time'
        )


def _cost(op: str) -> tuple[int, int]:
    """(operations, tiles) of one entry, at most."""
    each = [cost(op, _WIDTH, strided=strided) for strided in (False, True)]
    return max(c.operations for c in each), max(c.dense_tiles + c.depth_tiles for c in each)


def _preprocessing() -> tuple[int, int]:
    """(operations, tiles) of what brings both inputs of a cell to its width and resolution, at most."""
    operations, tiles = _cost('skip_connect')  # strided, it is the longer way
    return 2 * operations, 2 * tiles
