"""Predicts the weights of networks and writes them as safetensors.

python -m ghn_jax.predict --workdir=runs/quickstart/qat --arch=net.json --out=net.safetensors --bits=w4a4
python -m ghn_jax.predict --workdir=runs/quickstart/qat --arch=nets.json --out='weights/{name}.safetensors'
python -m ghn_jax.predict --workdir=runs/bits --arch=net.json --out=net.safetensors --policy=policy.json

The weights are rounded to --bits, or as the policy file says (its format: `quant/policy.py`). A hypernetwork
that is told the bits (config.ghn.bits) predicts them for that policy; for any other they change the rounding
only.

Tensors have DeepNets-1M's names. Layouts: 'pytorch' is OIHW for convolutions (depthwise: I is 1), (out, in)
for linear weights. 'jax' is HWIO for convolutions, as `lax.conv_general_dilated` and flax want (depthwise:
(H, W, 1, C), with feature_group_count=C), (in, out) for linear weights, (1, H, W, C) for position encodings.
"""

import time
from typing import Any

from absl import flags

from ghn_jax.base import cli, files
from ghn_jax.base.errors import UserError
from ghn_jax.base.start import start
from ghn_jax.hypernet.policy_features import check_policies
from ghn_jax.hypernet.predict import check_network
from ghn_jax.networks.files import load_networks
from ghn_jax.networks.graph import build_graph
from ghn_jax.quant.policy import load_policy, parse_bits
from ghn_jax.runs.prediction import LAYOUTS, output_files, predict, to_safetensors, with_names
from ghn_jax.runs.run import load_run

if __name__ == '__main__':
    _WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory, of ghn_jax.train or ghn_jax.convert.')
    _ARCH = flags.DEFINE_string('arch', None, 'Architecture file: JSON of one network or a list.')
    _OUT = flags.DEFINE_string(
        'out', None, 'File to write; for several networks a directory, or a name with {name}.'
    )
    _LAYOUT = flags.DEFINE_enum('layout', 'pytorch', LAYOUTS, 'OIHW and (out, in), or HWIO and (in, out).')
    _BITS = flags.DEFINE_string(
        'bits', None, 'Round the weights, as in w4a4; the activations are not in the file. Default: float.'
    )
    _POLICY = flags.DEFINE_string('policy', None, 'Policy file, in place of --bits: JSON, bits by tensor.')

    def _main() -> None:
        workdir = cli.check_workdir(_WORKDIR.value, must_exist=True)
        if _BITS.value is not None and _POLICY.value is not None:
            raise UserError('--bits and --policy are both given: give one of them')
        bits = 'float' if _BITS.value is None else _BITS.value
        policy = parse_bits(bits) if _POLICY.value is None else load_policy(_POLICY.value)
        if not _ARCH.value:
            raise UserError('--arch is missing: give an architecture file, as in --arch=net.json')
        specs = with_names(load_networks(_ARCH.value))
        outputs = output_files(_OUT.value or '', specs)
        start()
        run = load_run(workdir)
        config: Any = run.config
        for spec in specs:  # all of them before the first file is written
            check_network(spec, run.ghn, config.image_size)
        check_policies(map(build_graph, specs), [policy])
        for spec, file in zip(specs, outputs, strict=True):
            begin = time.perf_counter()
            weights, metadata = predict(run, spec, layout=_LAYOUT.value, policy=policy)
            seconds = time.perf_counter() - begin
            files.write(file, to_safetensors(weights, metadata))
            size = sum(w.size for w in weights.values())
            print(
                f'{file}: {len(weights)} tensors, {size:,} parameters, {policy}, predicted in {seconds:.2f} s'
            )

    cli.run(_main)
