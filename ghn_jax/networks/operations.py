"""The forward pass of a network as a graph of differentiable operations, dead branches included.

What `graph` makes its nodes from. The structure of the networks (stem, cells, ops, head) is written down, but
nothing is computed. Parameters are named as in DeepNets-1M.
"""

from ghn_jax.networks.spec import IMAGE_SIZE, VIT_SIZE, NetworkSpec

PASS = ''  # kind of an operation that is no node: relu, slicing, reshaping, ...
POOL_SHAPE = (1, 1, 3, 3)


class Operations:
    """The differentiable operations of a forward pass, as parallel lists; operation 0 is the network's input.

    kind: primitive, or PASS.   name, shape: of the parameter; None without.   cell: of the parameter.
    parents: the operations that feed it.   inputs: its arguments as the depth-first numbering visits them.
    The two differ in linear layers, where the input feeds the weight, and the weight the bias.
    """

    def __init__(self):
        self.kind, self.name, self.shape, self.cell, self.parents, self.inputs = [], [], [], [], [], []
        self.current_cell = 0
        self.add('input', ())

    def add(
        self,
        kind: str,
        parents: tuple[int, ...],
        name: str | None = None,
        shape: tuple[int, ...] | None = None,
        inputs: tuple[int, ...] | None = None,
    ) -> int:
        self.kind.append(kind)
        self.name.append(name)
        self.shape.append(shape)
        self.cell.append(self.current_cell)
        self.parents.append(parents)
        self.inputs.append(parents if inputs is None else inputs)
        return len(self.kind) - 1

    def conv(
        self,
        x: int,
        name: str,
        c_out: int,
        c_in: int,
        height: int,
        width: int | None = None,
        *,
        primitive: str = 'conv',
    ) -> int:
        return self.add(primitive, (x,), name + '.weight', (c_out, c_in, height, width or height))

    def norm(self, x: int, name: str, width: int, primitive: str = 'bn') -> int:
        return self.add(primitive, (x,), name + '.weight', (width,))

    def passing(self, x: int) -> int:
        return self.add(PASS, (x,))

    def linear(self, x: int, name: str, c_out: int, c_in: int, bias: bool = True) -> int:
        weight = self.add('conv', (x,), name + '.weight', (c_out, c_in), inputs=())
        if bias:
            return self.add('bias', (weight,), name + '.bias', (c_out,), inputs=(x, weight))
        return self.add(PASS, (weight,), inputs=(x, weight))


def forward_pass(spec: NetworkSpec) -> tuple[Operations, int]:
    """All operations of a network, dead branches included, and which of them makes the logits."""
    ops, vit, bn = Operations(), spec.is_vit, spec.norm is not None
    state0, state1, c0, c1, size = _stem(ops, spec)
    previous_reduced = spec.stem_type == 1
    for i, width in enumerate(spec.widths):
        ops.current_cell = i
        cell, reduction = f'cells.{i}.', spec.is_reduction(i)
        halve = previous_reduced and not vit
        first, second = state0, state1  # as the cell sees them
        if spec.preproc:
            if state0 is not None and halve:
                first = _factorized_reduce(ops, state0, cell + 'preprocess0', width, c0, bn)
            elif state0 is not None:
                first = _relu_conv(ops, state0, cell + 'preprocess0', width, c0, 1, bn)
            if state1 is not None:
                second = _relu_conv(ops, state1, cell + 'preprocess1', width, c1, 1, bn)
        elif state0 is not None and halve:
            first = ops.passing(state0)  # every other pixel
        entries, concat = spec.genotype.cell(reduction)
        out = _cell(ops, (first, second), entries, concat, cell, width, reduction and not vit, bn)
        state0, state1, c0, c1 = state1, out, c1, width * len(concat)
        previous_reduced = reduction
        size = (size + 1) // 2 if reduction and not vit else size
    return ops, _head(ops, spec, state1, c1 if spec.glob_avg else c1 * size * size)


def _stem(ops, spec):
    """-> state 0, state 1, their channels, pixels on a side of state 1."""
    C, ks, bn, image = spec.C, spec.ks, spec.norm is not None, 0
    if spec.is_vit:
        x = ops.conv(image, 'stem0', C, 3, 3)
        x = ops.add('pos_enc', (x,), 'pos_enc.weight', (1, C, VIT_SIZE, VIT_SIZE))
        return x, x, C, C, VIT_SIZE
    if spec.stem_type == 0:
        width = 3 * C if spec.preproc else C
        x = ops.conv(image, 'stem.0', width, 3, ks)
        x = ops.norm(x, 'stem.1', width) if bn else x
        x = ops.add('max_pool', (x,), shape=POOL_SHAPE) if spec.stem_pool else x
        return x, x, width, width, IMAGE_SIZE // 2 if spec.stem_pool else IMAGE_SIZE
    x = ops.conv(image, 'stem0.0', C // 2, 3, ks)
    x = ops.norm(x, 'stem0.1', C // 2) if bn else x
    x = ops.conv(ops.passing(x), 'stem0.3', C, C // 2, 3)
    x = ops.norm(x, 'stem0.4', C) if bn else x
    state0 = ops.passing(x)  # the second part's relu acts in place, so cell 0 sees it as well
    x = ops.conv(state0, 'stem1.1', C, C, 3)
    return state0, ops.norm(x, 'stem1.2', C) if bn else x, C, C, IMAGE_SIZE // 2


def _cell(ops, states, entries, concat, cell, width, strided, bn):
    """The operation that makes a cell's output; None if no listed state depends on the image."""
    states = list(states)
    for step in range(0, len(entries), 2):
        terms = []
        for i in (step, step + 1):
            op, source = entries[i]
            if op != 'none' and states[source] is not None:
                terms.append(
                    _op(ops, op, states[source], f'{cell}_ops.{i}', width, strided and source < 2, bn)
                )
        states.append(ops.add('sum', tuple(terms)) if len(terms) == 2 else terms[0] if terms else None)
    present = tuple(states[i] for i in concat if states[i] is not None)
    return ops.add('concat', present) if present else None


def _head(ops, spec, x, features):
    x = ops.add('glob_avg', (x,)) if spec.glob_avg else ops.passing(x)
    if spec.fc_layers == 1:
        return ops.linear(x, 'classifier.0', spec.num_classes, features)
    x = ops.passing(ops.linear(x, 'classifier.0', spec.fc_dim, features))
    return ops.linear(x, 'classifier.3', spec.num_classes, spec.fc_dim)


def _op(ops, op, x, name, C, strided, bn):
    """One op of a genotype, from C channels to C."""
    if op == 'skip_connect':
        return _factorized_reduce(ops, x, name, C, C, bn) if strided else x
    if op in ('max_pool_3x3', 'avg_pool_3x3'):
        return ops.add(op[:8], (x,), shape=POOL_SHAPE)
    if op == 'msa':
        return _attention(ops, x, name, C)
    if op == 'cse':
        x = _gate(ops, x, name, C)
        return ops.passing(x) if strided else x
    if op == 'conv_7x1_1x7':
        x = ops.conv(ops.passing(x), name + '.op.1', C, C, 1, 7)
        x = ops.conv(x, name + '.op.2', C, C, 7, 1)
        return ops.norm(x, name + '.op.3', C) if bn else x
    size = int(op[-1])
    if op.startswith('conv'):
        return _relu_conv(ops, x, name, C, C, size, bn)
    x = _separable(ops, x, name, (1, 2, 3), C, size, op[:8], bn)
    return _separable(ops, x, name, (5, 6, 7), C, size, op[:8], bn) if op.startswith('sep') else x


def _relu_conv(ops, x, name, c_out, c_in, size, bn):
    x = ops.conv(ops.passing(x), name + '.op.1', c_out, c_in, size)
    return ops.norm(x, name + '.op.2', c_out) if bn else x


def _separable(ops, x, name, numbers, C, size, primitive, bn):
    depthwise, pointwise, norm = (f'{name}.op.{number}' for number in numbers)
    x = ops.conv(ops.passing(x), depthwise, C, 1, size, primitive=primitive)
    x = ops.conv(x, pointwise, C, C, 1)
    return ops.norm(x, norm, C) if bn else x


def _factorized_reduce(ops, x, name, c_out, c_in, bn):
    x = ops.passing(x)
    left = ops.conv(x, name + '.conv_1', c_out // 2, c_in, 1)
    right = ops.conv(ops.passing(x), name + '.conv_2', c_out // 2, c_in, 1)
    x = ops.add('concat', (left, right))
    return ops.norm(x, name + '.bn', c_out) if bn else x


def _attention(ops, x, name, C):
    y = ops.norm(x, name + '.ln1', C, 'ln')
    y = ops.add('msa', (ops.linear(y, name + '.to_qkv', 3 * C, C, bias=False),))
    x = ops.add('sum', (ops.linear(y, name + '.to_out.0', C, C), x))
    y = ops.norm(x, name + '.ln2', C, 'ln')
    y = ops.passing(ops.linear(y, name + '.ff.net.0', C, C))
    return ops.add('sum', (ops.linear(y, name + '.ff.net.3', C, C), x))


def _gate(ops, x, name, C):
    y = ops.passing(ops.linear(ops.passing(x), name + '.fc1', C // 2, C))
    return ops.add('cse', (x, ops.passing(ops.linear(y, name + '.fc2', C, C // 2))))
