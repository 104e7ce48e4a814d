"""Specs: fields are checked, impossible and disconnected networks refused, files whole or not at all."""

import dataclasses
import json
import os

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.files import load_networks, save_networks
from ghn_jax.networks.genotype import Genotype
from ghn_jax.networks.spec import NetworkSpec, is_connected


def cells(normal, reduce=None, concat=(2,)):
    reduce = normal if reduce is None else reduce
    concat = list(concat)
    return {'normal': normal, 'normal_concat': concat, 'reduce': reduce, 'reduce_concat': concat}


CONV = [['conv_3x3', 0], ['skip_connect', 1]]
GOOD = {
    'C': 32, 'n_cells': 5, 'ks': 3, 'stem_type': 0, 'stem_pool': True, 'norm': 'bnorm', 'preproc': True,
    'C_mult': 2, 'fc_layers': 2, 'fc_dim': 64, 'glob_avg': True, 'genotype': cells(CONV),
}  # fmt: skip


def spec(**changes):
    return NetworkSpec.from_dict(GOOD | changes)


def refusal(**changes):
    """The one line that says what is wrong with the spec of these fields."""
    with pytest.raises(UserError) as error:
        spec(**changes)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_json_and_back_is_the_identity():
    one = spec(name='one', num_classes=100)
    assert NetworkSpec.from_json(one.to_json()) == one
    assert hash(NetworkSpec.from_json(one.to_json())) == hash(one)
    assert json.loads(spec().to_json()) == GOOD | {'num_classes': 10}


def test_numpy_numbers_become_python_numbers():
    one = NetworkSpec.from_dict(GOOD | {'C': np.int64(32), 'glob_avg': np.bool_(True)})
    assert one == spec() and type(one.C) is int and type(one.glob_avg) is bool


@pytest.mark.parametrize('field', [f for f in GOOD if f != 'genotype'])
@pytest.mark.parametrize('value', ['3', [3], {}, float('nan'), 3.0, -1, 10**9])
def test_no_field_takes_a_value_of_another_kind_or_size(field, value):
    assert field in refusal(**{field: value})


@pytest.mark.parametrize(
    'field', ['C', 'n_cells', 'ks', 'stem_type', 'C_mult', 'fc_layers', 'fc_dim', 'num_classes']
)
def test_true_is_no_number(field):
    assert f'{field} is True' in refusal(**{field: True})


@pytest.mark.parametrize('field', ['stem_pool', 'preproc', 'glob_avg'])
def test_one_and_null_are_no_flags(field):
    assert f'{field} is 1' in refusal(**{field: 1})
    assert f'{field} is None' in refusal(**{field: None})


@pytest.mark.parametrize(
    ('text', 'changes'),
    [
        ('multiple of 2', {'C': 33}),
        ('multiple of 8', {'C': 20, 'genotype': cells([['msa', 0], ['conv_3x3', 1]])}),
        ('ks is 4', {'ks': 4}),
        ('C_mult is 3', {'C_mult': 3}),
        ("norm is 'bn'", {'norm': 'bn'}),
        ('stem_pool is True with stem_type 1', {'stem_type': 1}),
        ('genotype is 3', {'genotype': 3}),
        ('name is 3', {'name': 3}),
        ("unknown field 'c'", {'c': 32}),
        ('nothing would widen', {'preproc': False}),
        ('2 states', {'preproc': False, 'C_mult': 1, 'genotype': cells(CONV + CONV, concat=(2, 3))}),
    ],
)
def test_impossible_networks_are_refused(text, changes):
    assert text in refusal(**changes)


def test_without_preprocessing_cells_of_one_width_are_fine():
    assert spec(preproc=False, C_mult=1).widths == (32,) * 5
    # The last cell feeds no other, so it may be as wide as it likes.
    assert spec(preproc=False, n_cells=1, genotype=cells(CONV + CONV, concat=(2, 3))).widths == (32,)


@pytest.mark.parametrize('field', list(GOOD))
def test_every_field_must_be_there(field):
    with pytest.raises(UserError, match=f"lacks the field '{field}'"):
        NetworkSpec.from_dict({key: value for key, value in GOOD.items() if key != field})


NONE = [['none', 0], ['none', 1]]


def test_networks_whose_image_does_not_reach_the_logits_are_refused():
    assert 'disconnected' in refusal(genotype=cells(NONE))
    # Reduction cells pass, but the last cell is a normal one.
    assert 'disconnected' in refusal(genotype=cells(NONE, CONV), n_cells=5)
    # Passing on state 0 alone is enough: every other cell is left out, but the stem is reached.
    passing = cells([['conv_3x3', 0], ['none', 1]])
    assert spec(genotype=passing).n_cells == 5
    # The state that is joined hangs on a state that is absent.
    assert 'disconnected' in refusal(genotype=cells(NONE + [['conv_1x1', 2], ['none', 0]], concat=(3,)))


def test_connectedness_is_reachability_in_the_graph_of_states():
    def flooded(genotype, n_cells):
        edges = []
        for c in range(n_cells):
            reduction = c > 0 and c in (n_cells // 3, 2 * n_cells // 3)
            entries, concat = genotype.cell(reduction)
            inputs = {0: ('out', c - 2), 1: ('out', c - 1)}
            for i, (op, source) in enumerate(entries):
                if op != 'none':
                    edges.append((inputs.get(source, (c, source)), (c, 2 + i // 2)))
            edges += [((c, state), ('out', c)) for state in concat]
        seen, grown = {('out', -1), ('out', -2)}, True
        while grown:
            new = {b for a, b in edges if a in seen} - seen
            seen |= new
            grown = bool(new)
        return ('out', n_cells - 1) in seen

    def cell(steps):
        ops = rng.choice(['none', 'conv_1x1'], p=[0.7, 0.3], size=2 * steps)
        return tuple((str(op), int(rng.integers(2 + i // 2))) for i, op in enumerate(ops))

    rng, both = np.random.default_rng(0), set()
    for _ in range(300):
        steps = int(rng.integers(1, 4))
        concat = tuple(sorted(set(rng.integers(2, steps + 2, size=2).tolist())))
        genotype = Genotype(
            normal=cell(steps), normal_concat=concat, reduce=cell(steps), reduce_concat=concat
        )
        n_cells = int(rng.integers(1, 8))
        both.add(flooded(genotype, n_cells))
        assert is_connected(genotype, n_cells) == flooded(genotype, n_cells)
    assert both == {True, False}


def test_reductions_stand_at_a_third_and_two_thirds():
    where = {n: [i for i in range(n) if spec(n_cells=n).is_reduction(i)] for n in (1, 2, 3, 4, 9, 18)}
    assert where == {1: [], 2: [1], 3: [1, 2], 4: [1, 2], 9: [3, 6], 18: [6, 12]}
    assert spec(n_cells=9).widths == (32, 32, 32, 64, 64, 64, 128, 128, 128)


# ---------------------------------------------------------------------- files


def test_saved_networks_load_again(tmp_path):
    path, networks = tmp_path / 'nets.json', [spec(name='a'), spec(C=64)]
    save_networks(path, networks)
    assert load_networks(path) == networks
    assert os.listdir(tmp_path) == ['nets.json']


@pytest.mark.parametrize(('count', 'name'), [(10_001, ''), (9_000, 100 * 'é')])
def test_what_would_not_load_is_not_saved(tmp_path, count, name):
    with pytest.raises(UserError, match=f'nets.json.* would hold {count:,} networks in .*: at most 10,000'):
        save_networks(tmp_path / 'nets.json', [spec(name=name)] * count)
    assert not os.listdir(tmp_path)


def test_a_single_object_and_entries_with_args_load(tmp_path):
    path = tmp_path / 'one.json'
    path.write_text(json.dumps(GOOD))
    assert load_networks(path) == [spec()]
    path.write_text(json.dumps([{'id': 'x-1', 'args': GOOD, 'n_nodes': 9}]))
    assert load_networks(path) == [spec(name='x-1')]


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('', 'no JSON'),
        ('{', 'no JSON'),
        ('[]', 'no network'),
        ('3', 'expected an object'),
        ('[3]', 'network 0'),
        ('[[' * 5000, 'JSON'),
        ('{"C": NaN}', 'NaN'),
        ('{"C": 32, "C": 64}', 'twice'),
        ('{"C": ' + '9' * 5000 + '}', 'JSON'),
        (json.dumps([GOOD, GOOD | {'C': 31}]), 'network 1'),
        (json.dumps([{'id': 'x', 'args': None}]), 'expected an object'),
    ],
)
def test_bad_files_are_refused_in_one_line_with_their_name(tmp_path, text, told):
    path = tmp_path / 'bad.json'
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_networks(path)
    assert told in str(error.value) and 'bad.json' in str(error.value) and '\n' not in str(error.value)


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / 'binary.json').write_bytes(b'\xff\xfe\x00')
    for path in (tmp_path / 'absent.json', tmp_path, tmp_path / 'binary.json'):
        with pytest.raises(UserError, match='cannot be read'):
            load_networks(path)


def test_the_home_directory_is_meant_by_a_tilde_where_a_file_is_written_as_where_it_is_read(
    tmp_path, monkeypatch
):
    monkeypatch.setenv('HOME', str(tmp_path))
    save_networks('~/net.json', [spec()])
    assert load_networks('~/net.json') == load_networks(tmp_path / 'net.json') == [spec()]


def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / 'taken.json').mkdir()
    for path in (tmp_path / 'taken.json', tmp_path / 'absent' / 'nets.json'):
        with pytest.raises(UserError, match='cannot be written'):
            save_networks(path, [spec()])
    assert os.listdir(tmp_path) == ['taken.json']
    with pytest.raises(UserError, match='at least one'):
        save_networks(tmp_path / 'none.json', [])


def test_golden_and_peer_architectures_load(golden, shared):
    networks = load_networks(golden / 'open' / 'archs.json')
    assert len(networks) == 69 and networks[0].name == 'convnets-00'
    assert sum(network.is_vit for network in networks) >= 10
    assert load_networks(shared / 'peer' / 'perf_archs.json')


def test_parameters_are_counted_as_published(golden):
    counts = json.loads((golden / 'open' / 'archs.json').read_text())
    for network, count in zip(load_networks(golden / 'open' / 'archs.json'), counts):
        assert count_parameters(network) == count['n_params_network'], network.name


def test_parameters_of_a_network_counted_by_hand():
    one = spec(n_cells=1, stem_pool=False, genotype=cells([['sep_conv_3x3', 0], ['max_pool_3x3', 1]]))
    stem = 3 * 96 * 9 + 2 * 96
    preprocess = 2 * (96 * 32 + 2 * 32)
    sep_conv = 2 * (9 * 32 + 32 * 32 + 2 * 32)
    head = (32 + 1) * 64 + (64 + 1) * 10
    assert count_parameters(one) == stem + preprocess + sep_conv + head
    flat = dataclasses.replace(one, glob_avg=False, fc_layers=1, num_classes=7)
    assert count_parameters(flat) == stem + preprocess + sep_conv + (32 * 32 * 32 + 1) * 7
