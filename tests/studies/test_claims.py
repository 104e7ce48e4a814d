"""The claims of GHN-QAT: what holds of evaluations whose scores are known."""

import copy
import json

import numpy as np
import pytest

from ghn_jax.base import jsonfile
from ghn_jax.base.errors import UserError
from ghn_jax.reporting.docs_tables import markdown
from ghn_jax.studies.claims import BITS, claims, main, table

PROTOCOL = {
    'dataset': 'digits', 'note': '', 'images': 300, 'image_size': 16, 'batch_size': 60, 'batch_norm': 'batch',
    'ranges': 'batch', 'range_rule': None, 'calibration_images': None, 'num_classes': 10, 'step': 3,
    'seed': 0, 'training': 'x', 'workdir': 'runs/x', 'device': '1 x cpu',
}  # fmt: skip


def evaluation(mode, means, splits=('test', 'deep'), spread=1.0, count=30):
    """A result whose networks have top-1 around the means of BITS, all apart by the same amount."""
    rng = np.random.default_rng(0)
    networks = []
    for split in splits:
        for i, off in enumerate(rng.normal(size=count)):
            tops = [mean + off + spread * np.sin(i + 2 * b) for b, mean in enumerate(means)]
            scores = {bits: {'top1': top, 'top5': 90.0} for bits, top in zip(BITS, tops)}
            networks.append({'split': split, 'name': f'n{i}', 'digest': f'{split}{i}', 'scores': scores})
    return {'rows': [], 'networks': networks, 'protocol': PROTOCOL | {'training_mode': mode}}


@pytest.mark.parametrize(
    'quantized, floating, verdicts',
    [
        ((60, 60, 58, 40), (60, 59.9, 50, 9), 'yes yes yes yes'),
        ((60, 60, 58, 40), (60, 57, 50, 30), 'no yes yes no'),  # 8 bits cost three points; 30 is above chance
        ((60, 60, 50, 8), (60, 59.9, 50, 9), 'yes no no yes'),
    ],
)
def test_a_claim_holds_where_the_whole_interval_says_so(quantized, floating, verdicts):
    rows = claims(evaluation('qat', quantized), evaluation('float', floating))
    assert [row[0] for row in rows] == ['test'] * 4 + ['deep'] * 4
    for split in ('test', 'deep'):
        assert ' '.join(row[-1] for row in rows if row[0] == split) == verdicts
    of_b = rows[1][4]
    assert of_b['difference'] == pytest.approx(quantized[2] - floating[2], abs=0.2)
    assert of_b['interval'][0] <= of_b['difference'] <= of_b['interval'][1]


def test_differences_are_paired_so_that_networks_may_be_far_apart():
    """Scores of networks scatter by a point, differences by none."""
    rows = claims(
        evaluation('qat', (60, 60, 58, 40), spread=0), evaluation('float', (60, 60, 57.5, 9), spread=0)
    )
    assert rows[1][4] == {'difference': pytest.approx(0.5), 'interval': pytest.approx([0.5, 0.5])}


def test_one_network_has_no_verdict():
    rows = claims(*(evaluation(m, (60, 60, 58, 40), ('test',), count=1) for m in ('qat', 'float')))
    assert {row[-1] for row in rows} == {''} and 'interval' not in rows[0][4]


def test_the_command_writes_a_table_that_pages_show(tmp_path, capsys):
    paths = [tmp_path / 'q.json', tmp_path / 'f.json', tmp_path / 'claims.json']
    for path, mode, means in zip(paths, ('qat', 'float'), ((60, 60, 58, 40), (60, 59.9, 50, 9))):
        path.write_text(json.dumps(evaluation(mode, means)))
    main([str(p) for p in paths])
    assert 'test (30)  b  W4/A4' in capsys.readouterr().out
    page = markdown(jsonfile.read(paths[2], 'table', ''))
    assert '| test | 30 | b | W4/A4: trained through quantization − in float | +8.0 [' in page


def test_what_cannot_be_compared_is_said():
    quantized, floating = evaluation('qat', (60, 60, 58, 40)), evaluation('float', (60, 60, 50, 9))
    with pytest.raises(UserError, match='trained in mode float, the second in mode qat'):
        claims(floating, quantized)
    fewer = evaluation('float', (60, 60, 50, 9), splits=('test',))
    with pytest.raises(UserError, match='30 networks, this has 60'):
        table(quantized, fewer)
    without = copy.deepcopy(floating)
    for network in without['networks']:
        del network['scores']['w2a2']
    with pytest.raises(UserError, match='the second result has no w2a2'):
        claims(quantized, without)
