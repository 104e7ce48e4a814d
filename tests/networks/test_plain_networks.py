"""Plain networks: chains of one operation, alone or residual, beside those of DeepNets-1M."""

from ghn_jax.networks.ops import plain_ops
from ghn_jax.networks.spaces import make_space


def is_plain(spec) -> bool:
    cells = spec.genotype.normal, spec.genotype.reduce
    return cells[0] == cells[1] and cells[0][1] in (('none', 0), ('skip_connect', 1)) and cells[0][0][1] == 1


def test_a_share_of_plain_networks_is_a_chain_of_one_operation():
    space = make_space('convnets250k', plain_share=0.4, channels=(16, 32))
    specs = [space.sample('train', 0, i) for i in range(300)]
    plain = [spec for spec in specs if is_plain(spec)]
    assert 0.3 < len(plain) / len(specs) < 0.5
    assert {spec.preproc for spec in plain} == {True, False} and all(spec.glob_avg for spec in plain)
    assert all(spec.C_mult == 1 for spec in plain if not spec.preproc)
    assert {spec.genotype.normal[1][0] for spec in plain} == {'none', 'skip_connect'}
    assert {spec.genotype.normal[0][0] for spec in plain} == set(plain_ops(space.ops))
    others = [spec for spec in specs if not is_plain(spec)]
    assert all(spec.preproc for spec in others)
