"""Statistics of scores: paired differences, bootstrap intervals, rank correlations."""

import json

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.evaluation import results


def make_result(training='a', **splits):
    """A result with the values of top-1 of each split's networks; top-5 is half as far from 100."""
    networks = [
        {'split': split, 'name': str(i), 'digest': f'{split}{i}',
         'scores': {'w4a4': {'top1': v, 'top5': 50 + v / 2}}}
        for split, values in splits.items()
        for i, v in enumerate(values)
    ]  # fmt: skip
    protocol = {'training': training, 'workdir': training, **PROTOCOL}
    return {'rows': results.make_rows(networks, ['w4a4']), 'networks': networks, 'protocol': protocol}


PROTOCOL = {
    'dataset': 'cifar10', 'note': '', 'images': 640, 'image_size': 32, 'batch_size': 64,
    'batch_norm': 'batch', 'ranges': 'batch', 'range_rule': None, 'calibration_images': None,
}  # fmt: skip


def test_differences_are_paired():
    def result(values, training):
        return make_result(training, test=values)

    row = results.compare(result([50.0, 20.0, 80.0], 'a'), result([40.0, 10.0, 70.0], 'b'))['rows'][0]
    assert (row['difference_top1_mean'], row['difference_top1_sem'], row['against_top1_mean']) == (10, 0, 40)
    assert (row['difference_top1_low'], row['difference_top1_high']) == (10, 10)


def test_each_split_is_compared_with_itself():
    ours = make_result(test=[50.0, 20.0], deep=[80.0, 90.0, 70.0])
    theirs = make_result(test=[40.0, 30.0], deep=[10.0, 20.0, 60.0])
    test, deep = results.compare(ours, theirs)['rows']
    assert (test['split'], test['n'], test['against_top1_mean'], test['difference_top1_mean']) == (
        'test', 2, 35, 0
    )  # fmt: skip
    assert (deep['split'], deep['n'], deep['against_top1_mean'], deep['difference_top1_mean']) == (
        'deep', 3, 30, 50
    )  # fmt: skip
    assert (test['difference_top1_low'], test['difference_top1_high']) == (-10, 10)
    assert test['difference_top1_sem'] == pytest.approx(10)
    # Differences of deep are 70, 70, 10: a deviation of sqrt(1200), over sqrt 3.
    assert deep['difference_top1_sem'] == pytest.approx(20) and deep['against_top1_sem'] == pytest.approx(
        (700 / 3) ** 0.5
    )
    assert deep['difference_top1_low'] == 10 and deep['difference_top1_high'] == 70


def check(theirs=None, bits=('w4a4',), **protocol):
    ours = make_result(test=[50.0, 20.0])
    results.check_comparable(
        theirs or make_result(test=[1.0, 2.0]), 'a.json', ours['networks'], bits, ours['protocol'] | protocol
    )


OTHER = {
    'dataset': 'digits', 'note': 'Images were re-encoded as JPEG.', 'images': 320, 'image_size': 16,
    'batch_size': 32, 'batch_norm': 'calibrated', 'ranges': 'calibrated', 'range_rule': 'percentile',
    'calibration_images': 1024,
}  # fmt: skip


@pytest.mark.parametrize('key', PROTOCOL)
def test_a_result_that_differs_in_any_of_the_protocol_is_not_compared(key):
    assert {*results._NAMES, *results._SAME} == set(PROTOCOL) == set(OTHER)
    check()
    with pytest.raises(
        UserError, match=f'^a.json was made with {key}=.*, this is {key}={OTHER[key]!r}: evaluate'
    ):
        check(**{key: OTHER[key]})
    theirs = make_result(test=[1.0, 2.0])
    del theirs['protocol'][key]
    if PROTOCOL[key] is None:  # as in results from before there was the key
        check(theirs)
    else:
        with pytest.raises(UserError, match=f'a.json was made with {key}=None'):
            check(theirs)


def test_images_are_known_by_their_digest_where_results_have_one_whatever_they_are_called():
    theirs = make_result(test=[1.0, 2.0])
    theirs['protocol'] |= {'images_digest': 7, 'dataset': 'before.npz'}
    check(theirs, images_digest=7, dataset='now.npz')
    with pytest.raises(UserError, match="^a.json was made with other images or labels of 'before.npz'"):
        check(theirs, images_digest=8, dataset='before.npz')
    with pytest.raises(UserError, match="^a.json was made with dataset='before.npz'"):
        check(theirs, dataset='now.npz')


@pytest.mark.parametrize('key', ['split', 'name', 'digest'])
def test_a_result_of_networks_that_differ_in_anything_that_says_which_they_are_is_not_compared(key):
    theirs = make_result(test=[1.0, 2.0])
    theirs['networks'][1][key] = 'other'
    with pytest.raises(UserError, match="a.json has other networks, from '1' on"):
        check(theirs)
    with pytest.raises(UserError, match='a.json has 1 networks, this has 2'):
        check(make_result(test=[1.0]))
    with pytest.raises(UserError, match='a.json has no w2a2, w1a2: evaluate both runs with the same bits'):
        check(bits=('w2a2', 'w4a4', 'w1a2'))


@pytest.mark.parametrize('key', ['split', 'name', 'digest'])
@pytest.mark.parametrize('value', [None, 7, ['a']])
def test_a_file_whose_networks_lack_what_says_which_they_are_is_refused(tmp_path, key, value):
    result = make_result(test=[1.0, 2.0])
    result['protocol']['step'] = 9
    (tmp_path / 'a.json').write_text(json.dumps(result))
    assert results.read_result(tmp_path / 'a.json') == result
    result['networks'][1][key] = value
    (tmp_path / 'a.json').write_text(json.dumps(result))
    with pytest.raises(UserError, match=f'is no result of ghn_jax.evaluate .{key} of network 1 is'):
        results.read_result(tmp_path / 'a.json')
    del result['networks'][1][key]
    (tmp_path / 'a.json').write_text(json.dumps(result))
    with pytest.raises(UserError, match=f'{key} of network 1 is None'):
        results.read_result(tmp_path / 'a.json')


@pytest.mark.parametrize('key', ['training', 'workdir', 'step', 'images'])
def test_a_file_whose_protocol_lacks_what_is_read_of_it_is_refused(tmp_path, key):
    result = make_result(test=[1.0])
    result['protocol'] |= {'step': 9, key: None}
    (tmp_path / 'a.json').write_text(json.dumps(result))
    with pytest.raises(UserError, match=f'{key} of its protocol is None'):
        results.read_result(tmp_path / 'a.json')


def test_statistics_are_mean_standard_error_median_and_maximum():
    # Deviations from 4 are -3, -2, -1, 6: 50 / 3 is the sample variance, over 4 values.
    assert results.statistics([1.0, 2.0, 3.0, 10.0], 'x') == {
        'x_mean': 4.0, 'x_sem': pytest.approx((50 / 3 / 4) ** 0.5), 'x_median': 2.5, 'x_max': 10.0,
    }  # fmt: skip
    (row,) = make_result(test=[10.0, 2.0, 3.0, 1.0])['rows']
    assert (row['top1_median'], row['top1_max'], row['top5_median'], row['top5_max']) == (2.5, 10, 51.25, 55)
    assert row['top1_sem'] == pytest.approx(2.0412414523) and row['top5_sem'] == pytest.approx(1.0206207262)


def test_bootstrap_intervals_are_about_two_standard_errors():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = results.bootstrap_interval(values)
    assert (low, high) == results.bootstrap_interval(values)  # and always the same
    np.testing.assert_allclose(
        [low, high], values.mean() + np.array([-1.96, 1.96]) * 0.1 * values.std() / 2, atol=0.03
    )
    assert results.bootstrap_interval([1.0]) is None


def test_the_draws_of_the_bootstrap_are_fixed():
    """So intervals printed before stay as they are."""
    assert results.bootstrap_interval([1.0, 2.0, 5.0, 9.0]) == pytest.approx((1.5, 7.25), rel=1e-12)
    values = [0.3, -1.2, 2.5, 0.7, 4.1, -0.4, 1.9]
    drawn = np.random.default_rng(0).integers(0, 7, (10_000, 7))
    expected = np.percentile(np.asarray(values)[drawn].mean(1), (2.5, 97.5))
    assert results.bootstrap_interval(values) == pytest.approx(tuple(expected), rel=1e-12)


def test_rank_correlation_is_that_of_ranks_with_ties_shared():
    assert results.rank_correlation([1, 5, 9], [0.1, 0.2, 100]) == pytest.approx(1)
    assert results.rank_correlation([1, 5, 9], [3, 2, 1]) == pytest.approx(-1)
    ranks = np.corrcoef([1.5, 1.5, 3, 4], [1, 3, 2, 4])[0, 1]
    assert results.rank_correlation([7, 7, 8, 9], [1, 3, 2, 4]) == pytest.approx(ranks)
    assert results.rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_one_network_has_no_standard_error():
    assert results.statistics([7.0], 'x') == {'x_mean': 7, 'x_sem': None, 'x_median': 7, 'x_max': 7}
