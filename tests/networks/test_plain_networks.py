"""Plain networks: chains of one operation and pooling, alone or residual, beside those of DeepNets-1M."""

from ghn_jax.networks.ops import plain_ops
from ghn_jax.networks.spaces import make_space


def is_plain(spec) -> bool:
    (op, source), *beside = spec.genotype.normal
    halvings = [[(halving, 1), *beside] for halving in (op, 'max_pool_3x3', 'avg_pool_3x3')]
    residual = beside in ([('none', 0)], [('skip_connect', 1)])
    return source == 1 and residual and list(spec.genotype.reduce) in halvings


def test_a_share_of_plain_networks_is_a_chain_of_one_operation():
    space = make_space('convnets250k', plain_share=0.4, channels=(16, 32))
    specs = [space.sample('train', 0, i) for i in range(300)]
    plain = [spec for spec in specs if is_plain(spec)]
    assert 0.3 < len(plain) / len(specs) < 0.5
    assert {spec.preproc for spec in plain} == {True, False} and all(spec.glob_avg for spec in plain)
    assert all(spec.C_mult == 1 for spec in plain if not spec.preproc)
    assert {spec.genotype.normal[1][0] for spec in plain} == {'none', 'skip_connect'}
    assert {spec.genotype.normal[0][0] for spec in plain} == set(plain_ops(space.ops))
    halvings = {spec.genotype.reduce[0][0] for spec in plain}
    assert halvings == {*plain_ops(space.ops), 'max_pool_3x3', 'avg_pool_3x3'}
    others = [spec for spec in specs if not is_plain(spec)]
    assert all(spec.preproc for spec in others)
