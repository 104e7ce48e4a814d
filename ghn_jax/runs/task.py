"""What a config describes: its space of networks, its data, its hypernetwork."""

from ml_collections import ConfigDict

from ghn_jax.base.errors import UserError
from ghn_jax.datasets.load import Dataset, load
from ghn_jax.hypernet.ghn import GHN, GHNConfig
from ghn_jax.networks.spaces import Space, make_space
from ghn_jax.networks.spec import IMAGE_SIZE


def make_space_of(config: ConfigDict) -> Space:
    """Make the space of networks that a config describes. () leaves a rule to the space.

    Raises:
      UserError: an unknown space or op, rules of no use, flattened heads or msa for images of another size
        than 32.
    """
    fields = {k: v for k, v in config.space.items() if k != 'name' and v != ()}
    if 'max_steps' in fields:
        fields['max_steps_deep'] = min(fields['max_steps'], make_space(config.space.name).max_steps_deep)
    space = make_space(config.space.name, **fields)
    for key, multiple in (('channels', 16), ('fc_dims', 8)):
        if unfit := [value for value in getattr(space, key) or () if value % multiple]:
            raise UserError(
                f'--config.space.{key} has {unfit[0]}: the executor runs multiples of {multiple}; give these'
            )
    if config.image_size != IMAGE_SIZE and 'msa' in space.ops:
        others = tuple(op for op in space.ops if op != 'msa')
        raise UserError(
            f'--config.image_size={config.image_size}: networks with msa are for {IMAGE_SIZE} pixels; '
            f'set --config.space.ops="{others}"'
        )
    if config.image_size != IMAGE_SIZE and space.flat_head_share:
        raise UserError(
            f'--config.image_size={config.image_size}: networks with flattened heads are defined for '
            f'{IMAGE_SIZE} pixels; set --config.space.flat_head_share=0'
        )
    return space


def load_data(config: ConfigDict) -> Dataset:
    """Load the data set of a config. Raises UserError where it is absent."""
    return load(
        config.dataset, data_dir=config.data_dir or None, image_size=config.image_size, seed=config.seed
    )


def make_ghn(config: ConfigDict, num_classes: int) -> GHN:
    """Make the hypernetwork of a config. Raises UserError for impossible fields."""
    return GHN(GHNConfig(num_classes=num_classes, **config.ghn))
