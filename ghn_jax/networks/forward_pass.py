"""The forward pass of a network as a graph of differentiable operations, dead branches included.

What `graph` makes its nodes from. The structure of the networks (stem, cells, ops, head) is written down, but
nothing is computed. Parameters are named as in DeepNets-1M.
"""

from collections.abc import Sequence

from ghn_jax.base.errors import UserError, shown
from ghn_jax.networks.genotype import Entry
from ghn_jax.networks.layers import POOL_SHAPE, FactorizedReduce, ForwardPass, Place
from ghn_jax.networks.ops import OPERATIONS, POINTWISE
from ghn_jax.networks.spec import IMAGE_SIZE, VIT_SIZE, NetworkSpec


def forward_pass(spec: NetworkSpec) -> tuple[ForwardPass, int]:
    """Return all operations of a network, dead branches included, and which of them makes the logits.

    Raises:
      UserError: it is no `NetworkSpec`.
    """
    if not isinstance(spec, NetworkSpec):
        raise UserError(f'the network is {shown(spec)}: expected a NetworkSpec')
    net, vit, bn = ForwardPass(), spec.is_vit, spec.norm is not None
    state0: int | None
    state1: int | None
    state0, state1, c0, c1, size = _stem(net, spec)
    previous_reduced = spec.stem_type == 1
    for i, width in enumerate(spec.widths):
        net.current_cell = i
        cell, reduction = f'cells.{i}.', spec.is_reduction(i)
        halve = previous_reduced and not vit
        first, second = state0, state1  # as the cell sees them
        if spec.preproc:
            layers = FactorizedReduce() if halve else POINTWISE
            if state0 is not None:
                first = layers.add_to(net, state0, Place(cell + 'preprocess0', c0, width, norm=bn))
            if state1 is not None:
                second = POINTWISE.add_to(net, state1, Place(cell + 'preprocess1', c1, width, norm=bn))
        elif state0 is not None and halve:
            first = net.passing(state0)  # every other pixel
        entries, concat = spec.genotype.cell(reduction)
        place = Place(cell, width, width, strided=reduction and not vit, norm=bn)
        out = _cell(net, (first, second), entries, concat, place)
        state0, state1, c0, c1 = state1, out, c1, width * len(concat)
        previous_reduced = reduction
        size = (size + 1) // 2 if reduction and not vit else size
    assert state1 is not None  # a spec is connected
    return net, _head(net, spec, state1, c1 if spec.glob_avg else c1 * size * size)


def _stem(net: ForwardPass, spec: NetworkSpec) -> tuple[int, int, int, int, int]:
    """Return state 0, state 1, the channels of each, and pixels on a side of state 1."""
    C, ks, bn, image = spec.C, spec.ks, spec.norm is not None, 0
    if spec.is_vit:
        x = net.conv(image, 'stem0', C, 3, (3, 3))
        x = net.add('pos_enc', (x,), 'pos_enc.weight', (1, C, VIT_SIZE, VIT_SIZE))
        return x, x, C, C, VIT_SIZE
    if spec.stem_type == 0:
        width = 3 * C if spec.preproc else C
        x = net.conv(image, 'stem.0', width, 3, (ks, ks))
        x = net.norm(x, 'stem.1', width) if bn else x
        x = net.add('max_pool', (x,), shape=POOL_SHAPE) if spec.stem_pool else x
        return x, x, width, width, IMAGE_SIZE // 2 if spec.stem_pool else IMAGE_SIZE
    x = net.conv(image, 'stem0.0', C // 2, 3, (ks, ks))
    x = net.norm(x, 'stem0.1', C // 2) if bn else x
    x = net.conv(net.passing(x), 'stem0.3', C, C // 2, (3, 3))
    x = net.norm(x, 'stem0.4', C) if bn else x
    state0 = net.passing(x)  # the second part's relu acts in place, so cell 0 sees it as well
    x = net.conv(state0, 'stem1.1', C, C, (3, 3))
    return state0, net.norm(x, 'stem1.2', C) if bn else x, C, C, IMAGE_SIZE // 2


def _cell(
    net: ForwardPass, inputs: Sequence[int | None], entries: Sequence[Entry], concat: Sequence[int], at: Place
) -> int | None:
    """Return the operation that makes a cell's output; None if no listed state depends on the image."""
    states = list(inputs)
    for step in range(0, len(entries), 2):
        terms = []
        for i in (step, step + 1):
            op, source = entries[i]
            if op != 'none' and (x := states[source]) is not None:
                place = at._replace(name=f'{at.name}_ops.{i}', strided=at.strided and source < 2)
                terms.append(OPERATIONS[op].add_to(net, x, place))
        states.append(net.add('sum', tuple(terms)) if len(terms) == 2 else terms[0] if terms else None)
    present = tuple(state for state in map(states.__getitem__, concat) if state is not None)
    return net.add('concat', present) if present else None


def _head(net: ForwardPass, spec: NetworkSpec, x: int, features: int) -> int:
    x = net.add('glob_avg', (x,)) if spec.glob_avg else net.passing(x)
    if spec.fc_layers == 1:
        return net.linear(x, 'classifier.0', spec.num_classes, features)
    x = net.passing(net.linear(x, 'classifier.0', spec.fc_dim, features))
    return net.linear(x, 'classifier.3', spec.num_classes, spec.fc_dim)
