"""The quickstart's networks and images with the published recipe of GHN-2: what recipes are compared with.

    python -m ghn_jax.train --config=configs/published_recipe.py --workdir=runs/published
    python -m ghn_jax.study --config=configs/published_recipe.py --strategies=recipe --workdir=runs/recipe

The strategies of `recipe.json` are one change each, and `winners`, which is the quickstart's recipe.
Result: 58 % where the winners reach 82 %, in docs/results.md.
"""

import pathlib

from ghn_jax import config_file


def get_config():
    c = config_file.load(pathlib.Path(__file__).with_name('quickstart.py'))
    c.train.optimizer = 'adam'
    c.train.learning_rate = 1e-3
    c.train.weight_decay = 1e-5
    c.train.schedule = 'step'
    c.train.warmup_steps = 0
    c.train.network_clip_norm = 0.0
    return c
