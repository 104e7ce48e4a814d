"""What `test_mesh` checks on simulated devices, in a process of its own: they are made when JAX starts.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.device_checks FOLDER [all]
writes FOLDER/results.json; with `all`, of the cases that are left out without it for their time.
"""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ghn_jax.aot.hlo import collectives, read
from ghn_jax.assembly.mesh import (
    OVER_DEVICES,
    OVER_IMAGES,
    REPLICATED,
    axes_of,
    make_mesh,
    make_workspaces,
    mesh_of,
    place_networks,
    replicate,
    spread,
)
from ghn_jax.assembly.network_batch import prepare
from ghn_jax.base.errors import UserError
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.cnn.covering import Family, program_for
from ghn_jax.evaluation.compiled import score as jitted_score
from ghn_jax.evaluation.protocol import Protocol
from ghn_jax.evaluation.score import score_in_full, score_networks
from ghn_jax.evaluation.selection import image_batches, select_split
from ghn_jax.hypernet.ghn import init_params
from ghn_jax.quant import Policy, Scheme
from ghn_jax.runs.run import load_run
from ghn_jax.runs.task import load_data, make_space_of
from ghn_jax.training.compiled import training_step
from ghn_jax.training.sampling import draw
from ghn_jax.training.step import TrainState, train_step
from ghn_jax.training.train import train
from tests.small_run import small_config, write_run
from tests.training.test_step import (
    CONFIG,
    GHN_,
    NODES,
    SIZE,
    TINY,
    data,
    double,
    gradient_errors,
    in_float64,
)

DEVICES = NETWORKS = IMAGES = 8
MESHES = ((8, 1), (4, 2), (1, 2))
# Not both quantized: a value that lies on the border of two levels goes either way with the last bit.
CASES = {
    'float': ('float', Policy()),
    'activations': ('qat', Policy(32, 4)),
    'weights': ('qat', Policy(4, 32)),
}
# Every collective there is, and the mesh without those of images. Without quantization there are no others.
FEW = [('weights', (8, 1)), ('activations', (4, 2)), ('weights', (4, 2))]
REST = [(case, mesh) for case in CASES for mesh in MESHES if (case, mesh) not in FEW]
SPACE = dataclasses.replace(TINY, ops=('skip_connect', 'conv_1x1'), cells=(1, 1))
# Its state is the gradient.
KEEP = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradients, state, params=None: (jax.tree.map(jnp.zeros_like, gradients), gradients),
)


def gradients(chosen):
    """'case mesh' -> largest relative error of a gradient, metrics beside one device's, collectives."""
    program = program_for(SPACE, 'train', Family(16), SIZE)
    specs, (images, labels) = draw(SPACE, 0, 0, NETWORKS), data(n=IMAGES)
    params = double(init_params(CONFIG, jax.random.key(0)))

    def inputs(mesh, policy):
        networks, _ = prepare(program, specs, policy, max_nodes=NODES)
        state = TrainState(jnp.int32(0), params, KEEP.init(params))
        workspace = make_workspaces(mesh, program, IMAGES)
        return (
            replicate(mesh, state),
            place_networks(mesh, in_float64(program, networks, specs), NETWORKS),
            *replicate(mesh, (images, labels), OVER_IMAGES),
            jax.tree.map(lambda x: x.astype(jnp.float64), workspace),
            replicate(mesh, jax.random.key(3)),
        )

    @functools.cache
    def compiled(mode, mesh):
        # With dropout: its masks, too, must be one device's.
        axes = axes_of(mesh)

        def step(state, networks, images, labels, workspace, key):
            return train_step(
                program, GHN_, KEEP, state, networks, images, labels, workspace=workspace, key=key,
                scheme=Scheme(mode), axes=axes,
            )  # fmt: skip

        layout = (OVER_IMAGES, OVER_IMAGES, OVER_DEVICES, REPLICATED)
        return jax.jit(spread(step, mesh, layout)).lower(*inputs(mesh, Policy())).compile()

    def run(case, shape):
        mode, policy = CASES[case]
        mesh = mesh_of(jax.devices()[: shape[0] * shape[1]], shape[1])
        step = compiled(mode, mesh)
        state, metrics, _ = step(*inputs(mesh, policy))
        return jax.device_get((state.opt_state, metrics)), step.as_text()

    alone = functools.cache(lambda case: run(case, (1, 1)))

    out = {}
    for case, shape in chosen:
        (expected, expected_metrics), _ = alone(case)
        (found, metrics), text = run(case, shape)
        out[f'{case} {shape}'] = {
            'error': max(gradient_errors(found, expected).values()),
            'metrics': {k: [float(np.sum(x[k])) for x in (metrics, expected_metrics)] for k in metrics},
            'collectives': collectives(read(text)),
            'parameters': sum(x.size for x in jax.tree.leaves(params)),
        }
    return out


def training(folder):
    """Losses of the same run on 1 device and on 4: two for the images of each network."""
    out = {}
    for name, count, images in (('one', 1, 1), ('four', 4, 2)):
        config = small_config(mode='float')
        config.space.ops = ('skip_connect', 'conv_1x1')
        config.train.steps, config.train.meta_batch, config.eval.every_steps = 3, 2, 0
        config.devices.per_process, config.devices.images = count, images
        before = training_step._cache_size()
        train(config, folder / name, stop_at=2 if name == 'four' else None)
        if name == 'four':  # goes on from a checkpoint that one device could have written
            train(config, folder / name)
        records = read_jsonl(folder / name / 'metrics.jsonl')
        out[name] = {
            'losses': [r['train/loss'] for r in records],
            'norms': [r['train/gradient_norm'] for r in records],
            'compiled': training_step._cache_size() - before,
        }
    config.devices.per_process, config.devices.images, config.train.steps = 1, 1, 3
    out['finished step'] = int(train(config, folder / 'four').step)  # on other devices
    return out


def scores(folder):
    """Scores of two networks on five batches, by one device and by three."""
    run = load_run(write_run(folder))
    selection = select_split(make_space_of(run.config), 'test', seed=0, count=2, image_size=8)
    dataset = load_data(run.config)
    images = image_batches(dataset, dataset.test, batch_size=8, num_images=40)
    score = functools.partial(score_networks, run.ghn, run.params, selection, images, [Policy()])
    mesh = mesh_of(jax.devices()[:3], 1)
    alone, before = score().tolist(), jitted_score._cache_size()
    return [alone, score(mesh=mesh).tolist(), jitted_score._cache_size() - before]


def calibrated(folder):
    """The same of two calibrated networks at W8/A8: [top1, (of weight, of activation) by layer in dB]."""
    run = load_run(write_run(folder))
    selection = select_split(make_space_of(run.config), 'test', seed=0, count=2, image_size=8)
    dataset = load_data(run.config)
    batches = functools.partial(image_batches, dataset, batch_size=8, num_images=40)
    options = dict(
        protocol=Protocol(batch_norm='calibrated', ranges='calibrated', sqnr=True),
        calibration=batches(dataset.train),
    )
    out = []
    for mesh in (None, mesh_of(jax.devices()[:3], 1)):
        scored = score_in_full(
            run.ghn, run.params, selection, batches(dataset.test), [Policy(8, 8)], mesh=mesh, **options
        )
        out.append([[s.top1, s.sqnr] for (s,) in scored])
    return out


def refusals():
    """The errors for devices that do not divide the work."""
    out = []
    for key, value, images in (
        ('train.meta_batch', 12, 1),
        ('train.batch_size', 5, 2),
        ('devices.images', 3, 3),
        ('devices.per_process', 9, 1),
    ):
        config = small_config()
        config.train.meta_batch, config.train.batch_size = 8, 8
        config.devices.per_process, config.devices.images = 0, images
        config.update_from_flattened_dict({key: value})
        try:
            make_mesh(config)
            out.append([key, ''])
        except UserError as e:
            out.append([key, str(e)])
    return out


def main(folder: pathlib.Path, everything: bool) -> None:
    results = {'devices': len(jax.devices())}
    if everything:
        results |= {'calibrated': calibrated(folder / 'run')}
    else:
        results |= {'refusals': refusals(), 'training': training(folder), 'scores': scores(folder / 'run')}
    with jax.enable_x64(True):
        results['gradients'] = gradients(REST if everything else FEW)
    (folder / 'results.json').write_text(json.dumps(results, default=np.ndarray.tolist))


if __name__ == '__main__':
    main(pathlib.Path(sys.argv[1]), sys.argv[2:] == ['all'])
