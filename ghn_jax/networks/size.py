"""How many parameters a network has, by formula: samplers ask for every candidate, so nothing is built.

All modules count, also those that `none` ops cut off from the logits (as published; those are no nodes).
"""

from collections.abc import Sequence

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
    coefficients = [
        _cell_coefficients(spec.genotype.cell(reduction)[0], reduction and not vit, bn)
        for reduction in (False, True)
    ]
    for i, width in enumerate(widths):
        reduction = spec.is_reduction(i)
        if spec.preproc:
            total += (c0 + c1 + 2 * bn) * width  # a strided preprocessing has two halves: the same count
        twice_square, twice_linear = coefficients[reduction]
        total += (twice_square * width + twice_linear) * width // 2
        c0, c1 = c1, width * len(spec.genotype.cell(reduction)[1])
        size = (size + 1) // 2 if reduction and not vit else size
    features = c1 if spec.glob_avg else c1 * size * size
    hidden = [spec.fc_dim] if spec.fc_layers == 2 else []
    outs = [*hidden, spec.num_classes]
    return total + sum((n_in + 1) * n_out for n_in, n_out in zip([features, *hidden], outs, strict=True))


def _cell_coefficients(entries: Sequence[tuple[str, int]], strided: bool, bn: int) -> tuple[int, int]:
    """Twice (s, l), where s W^2 + l W is what a cell's ops hold at width W. (A gate has 3/2 W biases.)"""
    square = linear = 0
    for op, source in entries:
        k = int(op[-1]) if op[-1].isdigit() else 0
        if op == 'skip_connect':
            s, l = (2, 2 * bn) if strided and source < 2 else (0, 0)
        elif op == 'conv_7x1_1x7':
            s, l = 28, 2 * bn
        elif op.startswith('conv'):
            s, l = 2 * k * k, 2 * bn
        elif op.startswith('sep'):
            s, l = 4, 4 * (k * k + bn)
        elif op.startswith('dil'):
            s, l = 2, 2 * (k * k + bn)
        elif op == 'msa':
            s, l = 12, 14
        elif op == 'cse':
            s, l = 2, 3
        else:
            s, l = 0, 0  # none and pooling
        square, linear = square + s, linear + l
    return square, linear
