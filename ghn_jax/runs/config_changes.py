"""Which keys two configs differ in, and which of them may change when a run goes on."""

import json

from ghn_jax import config as configs
from ghn_jax.config import RunConfig

# Keys that may change when a run goes on; all others make it another run.
FREE_KEYS = (
    'data_dir', 'log_every_steps', 'save_every_steps', 'keep_checkpoints', 'keep_every_steps',
    'save_in_background', 'max_not_finite', 'eval', 'devices',
)  # fmt: skip


def differing_keys(a: RunConfig, b: RunConfig, free: tuple[str, ...]) -> list[str]:
    """Return the dotted keys whose values differ, those in `free` (or below them) left out."""

    def flat(values, prefix=''):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f'{prefix}{key}.')
            else:
                yield prefix + key, value

    left, right = (dict(flat(json.loads(configs.to_json(c)))) for c in (a, b))
    differing = [k for k in left if left[k] != right.get(k)]
    return [k for k in differing if not any(k == f or k.startswith(f'{f}.') for f in free)]
