"""Memory: what does not fit is refused before it is compiled; workspaces are kept as far as they fit."""

import pytest

from ghn_jax.assembly import memory
from ghn_jax.base.errors import UserError
from ghn_jax.cnn import building
from ghn_jax.cnn.covering import family, program_for
from ghn_jax.runs.task import load_data, make_ghn, make_space_of
from ghn_jax.training.compiled import training_step
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.sampling import draw
from ghn_jax.training.stepper import Stepper
from ghn_jax.training.train import train
from tests.cnn.networks import small_network
from tests.small_run import small_config


def test_a_program_that_does_not_fit_is_refused_before_it_is_compiled(tmp_path, monkeypatch):
    config = small_config()
    config.train.batch_size = 7  # a program that no test has compiled
    compiled = training_step._cache_size()
    monkeypatch.setattr(memory, 'free_bytes', lambda mesh: 2**20)
    with pytest.raises(UserError, match='GiB .* free: .*batch_size.*channels.*dtype.*devices.cpu'):
        train(config, tmp_path)
    assert training_step._cache_size() == compiled


def test_the_estimate_of_memory_grows_with_the_batch_and_falls_with_the_dtype():
    config = small_config()
    space = make_space_of(config)
    program = program_for(space, 'train', family(draw(space, 0, 0, 1)[0]), config.image_size)

    def needed(**changes):
        config.train.update(changes)
        return memory.program_bytes(program, config, None)

    one = needed(batch_size=64)
    more = needed(batch_size=128) - one  # all but weights, tiles and their gradients
    assert more > 2**23 and needed(batch_size=192) == one + 2 * more
    assert needed(batch_size=64, dtype='bfloat16') < one - 0.4 * more


def test_workspaces_are_kept_for_their_family_while_they_take_half_of_the_memory():
    config = small_config()
    stepper = Stepper(config, make_ghn(config), make_optimizer(config), load_data(config))
    a, b, c = programs = [
        building.build_program(
            [small_network([('skip_connect', 0), ('conv_1x1', 1)], C=C)], image_size=16, max_params=1e5
        )
        for C in (16, 32, 48)
    ]
    sizes = [memory.program_bytes(p, config, None) for p in programs]
    stepper.free = 2 * (sizes[1] + sizes[2])
    made = {}
    for program in (a, b, a, c):  # when c comes, a was used last
        made[program] = stepper.workspaces[program] = stepper.take_workspace(program)
    assert list(stepper.workspaces) == [a, c]
    assert stepper.take_workspace(a) is made[a] and list(stepper.workspaces) == [c]
    stepper.free = 1
    stepper.take_workspace(b)
    assert not stepper.workspaces
    stepper.workspaces[b] = made[b]
    stepper.give_back()
    assert not stepper.workspaces


def test_a_container_may_take_what_it_keeps_of_files(tmp_path, monkeypatch):
    limit, used, statistics = (tmp_path / name for name in ('max', 'current', 'memory.stat'))
    monkeypatch.setattr(memory, '_CGROUPS', ((tmp_path, limit.name, used.name, 'inactive_file'),))
    unlimited = memory._container_free()
    limit.write_text('1000\n')
    used.write_text('900\n')
    statistics.write_text('anon 200\ninactive_file 600\nactive_file 100\n')
    assert memory._container_free() == 700
    limit.write_text('max\n')
    assert memory._container_free() == unlimited > 2**50
