"""DeepNets-1M's published files: their networks are the splits' networks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.config import RunConfig, SpaceConfig
from ghn_jax.evaluation import evaluate
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.networks.deepnets import load_deepnets, published_space
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import make_space
from ghn_jax.runs.task import make_space_of

SPACE = make_space('deepnets1m')


def names_of(graph):
    """Primitives as the files have them: with the size of a kernel, biases as fc-b."""
    for node in graph.nodes:
        if node.primitive in ('sep_conv', 'dil_conv', 'max_pool', 'avg_pool', 'conv'):
            yield f'{node.primitive}_{(node.shape + (1, 1))[2]}x{(node.shape + (1, 1))[3]}'
        else:
            yield {'bias': 'fc-b'}.get(node.primitive, node.primitive)


def write_files(folder, kind, splits):
    """The two files of these splits, {split: specs}, as the published generator writes them."""
    h5py = pytest.importorskip('h5py', reason='h5py is not installed')
    meta = {}
    with h5py.File(folder / f'deepnets1m_{kind}.hdf5', 'w') as file:
        file.attrs['title'] = 'DeepNets-1M'
        for split, specs in splits.items():
            primitives, nets = {}, []
            for i, spec in enumerate(specs):
                graph = build_graph(spec)
                numbers = [primitives.setdefault(name, len(primitives)) for name in names_of(graph)]
                nodes = np.array([[n, node.cell, 0] for n, node in zip(numbers, graph.nodes, strict=True)])
                file.create_dataset(f'{split}/{i}/adj', data=graph.distance)
                file.create_dataset(f'{split}/{i}/nodes', data=nodes.astype(np.uint16))
                fields = spec.to_dict()
                for key in ('name', 'num_classes', *(('C',) if split == 'train' else ())):
                    fields.pop(key, None)
                if split == 'wide':
                    fields['C'] //= 4
                nets.append(fields | {'num_nodes': len(nodes), 'num_params': {'cifar10': 1, 'imagenet': 2}})
            back = {str(number): name for name, number in primitives.items()}
            meta[split] = {'nets': nets, 'meta': {'primitives_ext': back, 'unique_op_names': {'0': ''}}}
    (folder / f'deepnets1m_{kind}_meta.json').write_text(json.dumps(meta))


@pytest.fixture
def folder(tmp_path):
    splits = {split: [SPACE.sample(split, 0, i) for i in range(3)] for split in ('test', 'wide', 'deep')}
    write_files(tmp_path, 'eval', splits)
    return tmp_path


def test_the_networks_of_the_files_are_those_of_the_splits(folder):
    for split in ('test', 'wide', 'deep'):
        specs = load_deepnets(folder, split)
        assert specs == [SPACE.sample(split, 0, i) for i in range(3)]  # names, too
        assert load_deepnets(folder, split, 2) == specs[:2]
        space = published_space(folder)
        assert (space.size(split), space.sample(split, 7, 1)) == (3, specs[1])


def test_networks_to_train_on_are_widened_whenever_they_are_taken(tmp_path):
    plain = [SPACE.propose('test', np.random.default_rng(i)) for i in range(40)]
    plain = [spec for spec in plain if not isinstance(spec, str)]
    write_files(tmp_path, 'train', {'train': plain})
    space = published_space(tmp_path)
    taken = [space.sample('train', seed, i) for seed in range(4) for i in range(len(plain))]
    assert taken == [space.sample('train', seed, i) for seed in range(4) for i in range(len(plain))]
    assert {spec.genotype for spec in taken} == {spec.genotype for spec in plain}
    assert {spec.C for spec in taken} == set(range(32, 129, 16))
    assert len({spec.fc_dim for spec in taken}) == 8
    assert all(s.C == 32 for s in taken if not s.glob_avg or s.n_cells > 12)
    meta = tmp_path / 'deepnets1m_train_meta.json'
    fields = json.loads(meta.read_text())
    for i, counted in enumerate((3, {}, {'cifar10': '1'}, None)):
        fields['train']['nets'][i]['num_params'] = counted
    other = tmp_path / 'other'
    other.mkdir()
    (other / meta.name).write_text(json.dumps(fields))
    for i in range(4):
        with pytest.raises(UserError, match=f'train {i}: num_params is .*expected an object'):
            published_space(other).sample('train', 0, i)


def test_the_order_of_nodes_in_a_file_does_not_matter_and_another_graph_is_told(folder):
    h5py = pytest.importorskip('h5py')
    with h5py.File(folder / 'deepnets1m_eval.hdf5', 'r+') as file:
        group = file['test/1']
        order = np.random.default_rng(0).permutation(len(group['nodes']))
        group['nodes'][...] = group['nodes'][()][order]
        group['adj'][...] = group['adj'][()][np.ix_(order, order)]
    assert len(load_deepnets(folder, 'test')) == 3
    with h5py.File(folder / 'deepnets1m_eval.hdf5', 'r+') as file:
        adjacency = file['test/1/adj'][()]
        adjacency[adjacency == 2] = 1
        file['test/1/adj'][...] = adjacency
    with pytest.raises(UserError, match=r'1 of 3 graphs in .*hdf5 are not those .*first: test 1'):
        load_deepnets(folder, 'test')


def test_an_evaluation_takes_the_splits_of_the_files_and_says_where_graphs_differ(
    folder, capsys, monkeypatch
):
    h5py = pytest.importorskip('h5py')

    def sampled(space, split, *, seed, count, image_size):  # without the programs, which take a minute
        return SimpleNamespace(specs=tuple(space.sample(split, seed, i) for i in range(count)))

    monkeypatch.setattr(evaluate, 'select_split', sampled)
    spec = EvaluationSpec(splits=('test', 'deep'), num_networks=2, deepnets=str(folder))
    run = RunConfig(space=SpaceConfig(name='convnets250k'))
    found = evaluate._select(run, spec)
    for split in ('test', 'deep'):
        assert found[split].specs == tuple(SPACE.sample(split, 0, i) for i in range(2))
    assert capsys.readouterr().err == ''
    with h5py.File(folder / 'deepnets1m_eval.hdf5', 'r+') as file:
        file['test/1/adj'][...] = 0
    evaluate._select(run, spec)
    assert capsys.readouterr().err.startswith('warning: test: 1 of 2 graphs (the first: 1)')


def test_a_run_takes_its_networks_from_the_files_as_they_are(folder):
    config = RunConfig(space=SpaceConfig(name='deepnets1m', folder=str(folder)))
    assert make_space_of(config) == published_space(folder)
    for space, more, message in (
        (SpaceConfig(folder='x'), {}, 'space.folder=x: its networks are as they are'),
        (SpaceConfig(name='deepnets1m', folder='x', ks=(3,)), {}, 'its networks are as they are'),
        (SpaceConfig(name='deepnets1m', folder='x'), {'image_size': 16}, 'for 32 pixels'),
    ):
        with pytest.raises(UserError, match=message):
            make_space_of(RunConfig(space=space, **more))


def test_files_that_are_absent_or_others_are_one_clear_error(folder, tmp_path):
    meta, graphs = folder / 'deepnets1m_eval_meta.json', folder / 'deepnets1m_eval.hdf5'
    for split, message in (
        ('train', r'deepnets1m_train_meta.json cannot be read \(No such file'),
        ('dense', 'has no networks of the split dense'),
        ('search', 'split .search. is unknown'),
    ):
        with pytest.raises(UserError, match=message):
            load_deepnets(folder, split)
    with pytest.raises(UserError, match='deepnets=.*absent is no directory'):
        load_deepnets(folder / 'absent', 'test')
    for count in (4, -1, '3', True):
        with pytest.raises(UserError, match='the split test has 3 networks'):
            load_deepnets(folder, 'test', count)
    space = published_space(folder)
    assert space.sample('test', 0, np.int64(2)) == space.sample('test', 0, 2)
    for seed in (-1, '0', None):
        with pytest.raises(UserError, match='seed is .*: expected an integer from 0'):
            space.sample('test', seed, 0)
    for index in (3, -1, True, '0'):
        with pytest.raises(UserError, match='index is .*: the split test has the networks 0 to 2'):
            space.sample('test', 0, index)
    whole = json.loads(meta.read_text())
    copies = iter(range(10))

    def altered(change, **files):
        other = tmp_path / f'copy{next(copies)}'
        other.mkdir()
        fields = json.loads(json.dumps(whole))
        change(fields)
        (other / meta.name).write_text(json.dumps(fields))
        (other / graphs.name).write_bytes(graphs.read_bytes())
        for name, data in files.items():
            (other / f'deepnets1m_eval{"." if name == "hdf5" else "_meta."}{name}').write_bytes(data)
        return other

    for other, message in (
        (altered(lambda m: m['test']['nets'][2].pop('ks')), "test 2: .*lacks the field 'ks'"),
        (altered(lambda m: m['test']['nets'].__setitem__(0, 3)), 'test 0: 3 is no network'),
        (altered(lambda m: m['test']['meta'].clear()), 'is no HDF5 file of graphs .KeyError'),
        (altered(lambda m: None, json=b'{'), 'is no JSON'),
        (altered(lambda m: None, hdf5=b'graphs'), 'is no HDF5 file of graphs .OSError'),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_deepnets(other, 'test')
        assert '\n' not in str(error.value)
