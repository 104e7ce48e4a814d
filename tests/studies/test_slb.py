"""The tables of the study of searched weights: paired differences, and soft against hard weights."""

import pytest

from ghn_jax.reporting.docs_tables import markdown
from ghn_jax.studies.slb import METHODS, accuracies, gaps, main
from ghn_jax.tuning.slb import SearchSpec


def runs(method: str, init: str, bits: str, tops: list[float]) -> list[dict]:
    """Of a seed each; soft weights are 10 points ahead of hard ones before the end."""
    made = []
    for seed, top1 in enumerate(tops):
        scores = {str(k): {'batch': {bits: top1 - 20 + 10 * k}} for k in (0, 1, 2)}
        if method == 'slb':
            for k, of in scores.items():
                of['soft'] = {bits: of['batch'][bits] + (10 if k != '2' else 0)}
        made.append({'network': 'net', 'init': init, 'bits': bits, 'seed': seed, 'scores': scores})
    return made


ALL = {
    method: [
        run
        for init, bits, tops in (
            ('he', 'w1a8', [60, 64]), ('predicted', 'w1a8', [70]), ('he', 'w10a4', [80, 82]),
        )
        for run in runs(method, init, bits, [top1 + 4 * (method == 'slb') for top1 in tops])
    ]
    for method in METHODS
}  # fmt: skip


def test_accuracies_are_of_the_last_pass_and_differences_are_those_of_equal_seeds():
    columns, rows = accuracies(ALL)
    assert [row[:3] for row in rows] == [['he', 'w1a8', 2], ['he', 'w10a4', 2], ['predicted', 'w1a8', 1]]
    assert rows[0][3:] == [{'mean': 62, 'sem': 2}, {'mean': 66, 'sem': 2}, '+4.0 ± 0.0']
    assert rows[2][3:] == [{'mean': 70}, {'mean': 74}, '+4.0'], 'of one seed there is no error'
    table = markdown({'columns': columns, 'rows': rows, 'about': {'date': 'today'}})
    assert '| he | w1a8 | 2 | 62.0 ± 2.0 | 66.0 ± 2.0 | +4.0 ± 0.0 |' in table


def test_of_several_networks_the_error_is_that_of_networks_and_not_of_their_seeds():
    several = {}
    for method in METHODS:
        first, second = (runs(method, 'he', 'w2a8', tops) for tops in ([60, 64], [80, 84]))
        several[method] = first + [{**run, 'network': 'other'} for run in second]
    ((*_, rounded, searched, change),) = accuracies(several)[1]
    assert rounded == searched == {'mean': 72, 'sem': pytest.approx(10)} and change == '+0.0 ± 0.0'


def test_soft_and_hard_accuracies_stand_side_by_side_under_the_temperature_of_their_pass():
    columns, rows = gaps(ALL, SearchSpec(start=0.0, end=0.9), 2)
    assert columns == ['from', 'bits', '0', '1', '2']
    assert rows[0] == ['temperature', '', '1', '12.9', 'hard']
    assert rows[1] == ['he', 'w1a8', '56.0 / 46.0', '66.0 / 56.0', '66.0 / 66.0']


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['digits', 'DIR', '--bits=w8a8'], 'slb searches weights of at most 4 bits'),
        (['digits', 'DIR', '--init=predicted'], 'there is no hypernetwork'),
        (['digits', 'DIR', '--epochs=0'], 'epochs=0'),
        (['digits', 'DIR', '--train_images=-5'], 'train_images=-5: digits has 1197; 0 takes all'),
        (['digits', 'DIR', '--train_images=1198'], 'train_images=1198: digits has 1197'),
        (['mnist', 'DIR'], "'mnist' is not one of cifar10"),
    ],
)
def test_bad_input_gets_one_line(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main([argument.replace('DIR', str(tmp_path)) for argument in arguments])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1
