"""The command lines of studies: what is wrong is told in one line."""

import pytest

from ghn_jax.studies import fixed_point, post_training, squeezing


@pytest.mark.parametrize(
    'study, arguments, words',
    [
        (fixed_point, ['mnist', 'DIR'], "datasets has 'mnist': expected of digits, cifar10"),
        (fixed_point, ['cifar10', 'DIR'], 'cifar10 is not prepared'),
        (fixed_point, ['digits', 'FILE'], 'out='),
        (fixed_point, ['digits', 'DIR', 'more'], 'unrecognized arguments: more'),
        (post_training, ['cifar10', 'DIR'], 'cifar10 is not prepared'),
        (post_training, ['digits', 'FILE'], 'out='),
        (squeezing, ['cifar10', 'DIR'], "invalid choice: 'cifar10'"),
        (squeezing, ['digits', 'FILE'], 'out='),
        (squeezing, ['digits', 'DIR', 'more'], 'unrecognized arguments: more'),
    ],
)
def test_bad_input_gets_one_line(study, arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    (tmp_path / 'file').touch()
    places = {'DIR': str(tmp_path / 'out'), 'FILE': str(tmp_path / 'file')}
    with pytest.raises(SystemExit) as left:
        study.main([places.get(argument, argument) for argument in arguments])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1
