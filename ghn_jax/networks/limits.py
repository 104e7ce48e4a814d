"""What a network in a file may ask for, judged by formula before anything is made from it.

The limits are far beyond the spaces' networks and keep a file from asking for terabytes or for days: a graph
has a matrix of all pairs of nodes, a hypernetwork decodes a tile of 16 KiB for each position of a kernel, and
each width has a program of its own, compiled for minutes.
"""

from collections.abc import Sequence

from ghn_jax.base.errors import UserError, shown
from ghn_jax.networks.ops import OPERATIONS
from ghn_jax.networks.size import cost, count_parameters
from ghn_jax.networks.spec import VIT_SIZE, NetworkSpec

MAX_NETWORKS = 10_000  # of a file; a split has 500
MAX_PARAMETERS = 200_000_000  # of a network; the spaces' widest have up to 160 million
MAX_OPERATIONS = 4096  # of a network: convolutions, norms, sums, ...; the spaces' have up to 1,400
MAX_TILES = 16_384  # that are decoded for a network: 256 MiB; the spaces' take up to 2,500
MAX_FAMILIES = 16  # widths in a file, with and without attention, where each needs a program; training has 7

_WIDTH = 16  # at which operations are measured: what is limited here depends on no width
_STEM, _HEAD = (9, 49 + 2 * 9), (6, 1)  # (operations, tiles), at most


def check_size(spec: NetworkSpec) -> None:
    """Raises UserError naming the limit that a network is beyond, and the fields to change."""
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


def bounds(spec: NetworkSpec) -> tuple[int, int]:
    """No less than a network's (operations, decoded tiles); dead branches count."""
    reductions = sum(map(spec.is_reduction, range(spec.n_cells)))
    totals = [a + b for a, b in zip(_STEM, _HEAD)]
    totals[1] += VIT_SIZE**2 if spec.is_vit else 0
    for reduction, cells in ((False, spec.n_cells - reductions), (True, reductions)):
        entries, _ = spec.genotype.cell(reduction)
        costs = [_preprocessing(), (1 + len(entries) // 2, 0), *(_cost(op) for op, _ in entries)]
        totals = [total + cells * sum(column) for total, column in zip(totals, zip(*costs))]
    return totals[0], totals[1]


def largest_kernel(spec: NetworkSpec) -> int:
    """Pixels on a side of the largest kernel, or of positional encodings; dead branches count."""
    kernels = (cost(op, spec.C).kernel for op in spec.genotype.ops)
    return max(VIT_SIZE if spec.is_vit else spec.ks, *kernels, 3 if spec.stem_type else 1)


def operations_of_cell(steps: int) -> int:
    """Operations of a cell of the longest convolutions with so many intermediate states, at most."""
    longest = max(_cost(name)[0] for name, op in OPERATIONS.items() if op.convolves)
    return _preprocessing()[0] + 1 + steps * (1 + 2 * longest)


def check_families(specs: Sequence[NetworkSpec]) -> None:
    """Raises UserError where networks that are to be run need too many programs."""
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
