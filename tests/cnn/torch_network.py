"""`MIXED` of `test_reference`, written out by hand in PyTorch, quantized and not."""


def torch_network(torch, params, x, weight_bits, activation_bits):
    """Logits. torch: the module. x: [N, 3, H, W]. Bits are functions of the weight's name."""
    f = torch.nn.functional

    def quantize(x, bits):
        if bits == 32:
            return x
        lo, hi = min(0.0, x.min().item()), max(0.0, x.max().item())
        s = (hi - lo) / (2**bits - 1)
        q = torch.round(x.detach() / s) + round(-lo / s)
        inside = (q >= 0) & (q <= 2**bits - 1)
        rounded = (q.clamp(0, 2**bits - 1) - round(-lo / s)) * s
        return rounded + (x - x.detach()) * inside

    def weight(name):
        return quantize(params[f'{name}.weight'], weight_bits(f'{name}.weight'))

    def enter(name, x):
        return quantize(x, activation_bits(f'{name}.weight'))

    def conv(name, x, stride=1, groups=1, dilation=1):
        w = weight(name)
        padding = [k // 2 * dilation for k in w.shape[2:]]
        return f.conv2d(enter(name, x), w, None, stride, padding, dilation, groups)

    def norm(name, x):
        return f.batch_norm(x, None, None, params[f'{name}.weight'], params[f'{name}.bias'], True)

    def halve(name, x):
        x = enter(f'{name}.conv_1', x.relu())
        parts = (
            f.conv2d(x, weight(f'{name}.conv_1'), None, 2),
            f.conv2d(x[..., 1:, 1:], weight(f'{name}.conv_2'), None, 2),
        )
        return norm(f'{name}.bn', torch.cat(parts, 1))

    def preprocess(name, x, halved=False):
        return halve(name, x) if halved else norm(f'{name}.op.2', conv(f'{name}.op.1', x.relu()))

    s0 = norm('stem0.4', conv('stem0.3', norm('stem0.1', conv('stem0.0', x)).relu())).relu()
    s1 = norm('stem1.2', conv('stem1.1', s0, 2))
    a, b = preprocess('cells.0.preprocess0', s0, True), preprocess('cells.0.preprocess1', s1)
    op = 'cells.0._ops.0.op'
    y = norm(f'{op}.3', conv(f'{op}.2', conv(f'{op}.1', a.relu(), groups=a.shape[1])))
    y = norm(f'{op}.7', conv(f'{op}.6', conv(f'{op}.5', y.relu(), groups=a.shape[1])))
    c = y + f.max_pool2d(b, 3, 1, 1)
    op = 'cells.0._ops.2.op'
    d = norm(f'{op}.3', conv(f'{op}.2', conv(f'{op}.1', c.relu()))) + a
    s0, s1 = s1, torch.cat([c, d], 1)
    for cell in (1, 2):
        a = preprocess(f'cells.{cell}.preprocess0', s0, halved=cell == 2)
        b = preprocess(f'cells.{cell}.preprocess1', s1)
        op = f'cells.{cell}._ops.1.op'
        y = norm(f'{op}.3', conv(f'{op}.2', conv(f'{op}.1', b.relu(), 2, b.shape[1], 2)))
        c = halve(f'cells.{cell}._ops.0', a) + y
        op = f'cells.{cell}._ops.3.op'
        d = f.avg_pool2d(c, 3, 1, 1, count_include_pad=False) + norm(f'{op}.2', conv(f'{op}.1', b.relu(), 2))
        s0, s1 = s1, torch.cat([c, d], 1)
    x = enter('classifier.0', s1.mean((2, 3))) @ weight('classifier.0').T + params['classifier.0.bias']
    return enter('classifier.3', x.relu()) @ weight('classifier.3').T + params['classifier.3.bias']
