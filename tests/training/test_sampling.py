"""Which networks a step has, and at which bits: functions of seed and step, of one family."""

import numpy as np

from ghn_jax import config as configs
from ghn_jax.cnn.covering import family
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import make_space
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs import task
from ghn_jax.training.sampling import Preparation, draw, networks_of
from tests.small_run import small_config


def test_networks_of_a_step_share_a_family_and_depend_on_step_and_seed_only():
    space = make_space('convnets250k')
    first = [draw(space, 0, step, 3) for step in range(12)]
    assert all(len({spec.C for spec in specs}) == 1 for specs in first)
    assert first == [draw(space, 0, step, 3) for step in range(12)]
    assert first != [draw(space, 1, step, 3) for step in range(12)]
    widths = [draw(space, 0, step, 1)[0].C for step in range(200)]
    assert 0.7 < np.mean(np.array(widths) == 32) < 0.95  # as in the space
    families = [set(map(family, draw(make_space('deepnets1m'), 0, step, 3))) for step in range(12)]
    assert all(len(f) == 1 for f in families) and len(set().union(*families)) > 1


def test_small_networks_come_first_and_then_as_without_a_curriculum():
    space, c = make_space('convnets250k'), small_config()
    c.train.meta_batch = 4
    plain = configs.freeze(c)
    c.train.small_first_steps = 40
    small = configs.freeze(c)
    cells = lambda steps: np.mean([s.n_cells for i in steps for s in networks_of(small, space, i)])
    assert cells(range(4)) + 2 < cells(range(34, 38))
    assert networks_of(small, space, 3) == networks_of(small, space, 3) != networks_of(plain, space, 3)
    for step in (0, 9, 20, 39, 40, 41):
        specs = networks_of(small, space, step)
        assert len(specs) == 4 and len(set(map(family, specs))) == 1
        assert networks_of(plain, space, step) == draw(space, 0, step, 4)
        assert step < 40 or specs == draw(space, 0, step, 4)
        # Of those that are drawn anyway, the smallest.
        assert sum(s.n_cells for s in specs) <= sum(s.n_cells for s in draw(space, 0, step, 4))


def test_what_the_graphs_say_is_what_the_networks_run_at():
    c = small_config(draw=('w2a2', 'w2a8', 'w4a4', 'w32a4'), draw_per='either', schedule=((1, 'float'),))
    c.ghn.bits = True
    space, strategy = task.make_space_of(c), strategy_of(c)
    _, networks = Preparation(c, space, strategy).step(7)
    specs = draw(space, 0, 7, 2)
    expected = [
        strategy.policy_of(7, m, build_graph(specs[m])).widths('classifier.0.weight')[0] for m in range(2)
    ]
    for m in range(2):
        told, run = networks.graphs.weight_bits[m], networks.bits.weights[m]
        assert set(told) - {0, 32} == set(run) - {32}
        assert expected[m] in told
