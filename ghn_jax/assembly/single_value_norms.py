"""BatchNorm over a single value: the mean is that value, so the result is the shift, whatever the image.

This happens where a batch has one image and the feature maps have one pixel. A network with such a norm on
all its paths gives all images one class, and nothing fails.
"""

from collections.abc import Iterable

from ghn_jax.base.errors import FieldError
from ghn_jax.cnn.covering import Family, covering_networks, widths
from ghn_jax.cnn.instructions import Norm
from ghn_jax.cnn.lowering import lower
from ghn_jax.config import RunConfig, image_sizes
from ghn_jax.networks.spaces import Space
from ghn_jax.networks.spec import NetworkSpec

_SMALLEST = 8  # pixels of images that a stem and two reductions leave one of


def has_single_value_norm(spec: NetworkSpec, image_size: int) -> bool:
    """Return whether a BatchNorm of the network reads feature maps of one pixel."""
    lowered = lower(spec, image_size)
    return lowered.has_norm and any(
        isinstance(i.op, Norm) and lowered.shapes[i.dst][0] == 1 for i in lowered.instructions
    )


def warning(specs: Iterable[NetworkSpec], image_size: int, batch_size: int) -> str | None:
    """Return what to say before networks are scored on batches of this size, or None for nothing."""
    if batch_size > 1:
        return None
    found = [has_single_value_norm(spec, image_size) for spec in specs]
    if not any(found):
        return None
    return (
        f'batch_size=1 and image_size={image_size}: in {sum(found)} of the {len(found)} networks a BatchNorm '
        'has one value a channel, and gives the same for all images: take a larger batch_size'
    )


def check_batch_norm(config: RunConfig, space: Space) -> None:
    """Raise FieldError where networks of the space would train with BatchNorm over one value."""
    size = min(image_sizes(config))
    if config.train.batch_size > 1 or size > _SMALLEST:
        return
    family = Family(widths(space, 'train')[0])
    if any(has_single_value_norm(spec, size) for spec in covering_networks(space, 'train', family)):
        small = ' and train.small_images_steps' if size < config.image_size else ''
        raise FieldError(
            'train.batch_size',
            f'=1 with image_size={config.image_size}{small}: BatchNorm would have '
            'one value a channel, and give the same for all images: take a larger batch_size',
        )
