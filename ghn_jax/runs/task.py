"""What a config describes: its space of networks, its data, its hypernetwork."""

import dataclasses
import os

from ghn_jax.base.errors import FieldError, prefixed
from ghn_jax.config import HypernetworkConfig, RunConfig, SpaceConfig, image_sizes
from ghn_jax.datasets.load import Dataset, load, read_sizes
from ghn_jax.datasets.sizes import MADE, DatasetSizes
from ghn_jax.hypernet.ghn import GHN, GHNConfig
from ghn_jax.networks.deepnets import published_space
from ghn_jax.networks.spaces import Space, make_space
from ghn_jax.networks.spec import IMAGE_SIZE


def make_space_of(config: RunConfig) -> Space:
    """Make the space of networks that a config describes. () leaves a rule to the space.

    Raises:
      UserError: an unknown space or op, rules of no use, flattened heads or msa for images of another size
        than 32.
    """
    if config.space.folder:
        return _published_space(config)
    rest = ('name', 'folder')
    keys = [field.name for field in dataclasses.fields(SpaceConfig) if field.name not in rest]
    fields = {key: value for key in keys if (value := getattr(config.space, key)) != ()}
    with prefixed('space.'):
        max_steps_deep = min(config.space.max_steps, make_space(config.space.name).max_steps_deep)
        space = make_space(config.space.name, max_steps_deep=max_steps_deep, **fields)
    for key, multiple in (('channels', 16), ('fc_dims', 8)):
        if unfit := [value for value in getattr(space, key) or () if value % multiple]:
            raise FieldError(
                f'space.{key}', f' has {unfit[0]}: the executor runs multiples of {multiple}; give these'
            )
    others = tuple(op for op in space.ops if op != 'msa')
    if len(others) < len(space.ops):
        _check_sizes(config, f'networks with msa are for {IMAGE_SIZE} pixels; set space.ops="{others}"')
    if space.flat_head_share:
        _check_sizes(
            config,
            f'networks with flattened heads are defined for {IMAGE_SIZE} pixels; set space.flat_head_share=0',
        )
    return space


def _check_sizes(config: RunConfig, said: str) -> None:
    """Raise FieldError if a training sees images of another size than 32. said: why that cannot be."""
    if config.image_size != IMAGE_SIZE:
        raise FieldError('image_size', f'={config.image_size}: {said}')
    if image_sizes(config) != (IMAGE_SIZE,):
        steps = config.train.small_images_steps
        raise FieldError('train.small_images_steps', f'={steps} shows images of {IMAGE_SIZE // 2}: {said}')


def _published_space(config: RunConfig) -> Space:
    """The networks of DeepNets-1M's files, which no rule of a config changes."""
    published = SpaceConfig(name='deepnets1m', folder=config.space.folder)
    if config.space != published:
        raise FieldError(
            'space.folder',
            f'={config.space.folder}: its networks are as they are: set space.name=deepnets1m, and leave the '
            'other keys of space at their defaults',
        )
    _check_sizes(config, f'networks of space.folder are for {IMAGE_SIZE} pixels')
    return published_space(config.space.folder)


def sizes_of(config: RunConfig) -> DatasetSizes:
    """Return what is known of the data set of a config without reading its images.

    Raises:
      UserError: there is no such data set, or it has another number of classes than the networks.
    """
    sizes = read_sizes(config.dataset, data_dir=config.data_dir or None)
    if sizes.num_classes != config.space.num_classes:
        raise FieldError(
            'space.num_classes',
            f'={config.space.num_classes}: {config.dataset} has {sizes.num_classes} classes; give these',
        )
    return sizes


def load_data(config: RunConfig) -> Dataset:
    """Load the data set of a config. Raises UserError where it is absent."""
    return load(
        config.dataset, data_dir=config.data_dir or None, image_size=config.image_size, seed=config.seed
    )


def check_data_dir(dataset: str, data_dir: str | os.PathLike | None) -> None:
    """Raise FieldError for a folder of a data set that lies in none."""
    if data_dir is not None and dataset in MADE:
        raise FieldError('data_dir', f'={data_dir}: {dataset} lies in no folder: leave it out')


def make_ghn(config: RunConfig) -> GHN:
    """Make the hypernetwork of a config. Raises UserError for impossible fields."""
    keys = [field.name for field in dataclasses.fields(HypernetworkConfig)]
    with prefixed('ghn.'):
        classes = config.space.num_classes
        return GHN(GHNConfig(num_classes=classes, **{key: getattr(config.ghn, key) for key in keys}))
