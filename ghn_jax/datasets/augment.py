"""What is done to a batch of images on the device: random crops and mirroring, normalisation.

Axes: B images of a batch | H, W pixels | 3 colours.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ghn_jax.base import collectives


def crop_and_flip(
    key: jax.Array, images: jax.Array, *, pad: int = 4, flip: bool = True, axis: str | None = None
) -> jax.Array:
    """Crop zero-padded images at random and mirror them with probability 1/2.

    Args:
        key: random.
        images: uint8 [B, H, W, 3].
        pad: pixels of zeros on each side.
        flip: whether to mirror.
        axis: a mesh axis whose devices each hold B images of a batch; they look as they do on one device.

    Returns:
        uint8 [B, H, W, 3].
    """
    k_crop, k_flip = jax.random.split(key)
    b, h, w, c = images.shape
    batch = b * collectives.size(axis)
    origin = collectives.own_rows(jax.random.randint(k_crop, (batch, 2), 0, 2 * pad + 1), axis)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    crop = jax.vmap(lambda x, o: jax.lax.dynamic_slice(x, (o[0], o[1], 0), (h, w, c)))(padded, origin)
    if not flip:
        return crop
    mirrored = collectives.own_rows(jax.random.bernoulli(k_flip, 0.5, (batch,)), axis)
    return jnp.where(mirrored[:, None, None, None], crop[:, :, ::-1], crop)


def halved_to(size: int, images: jax.Array) -> jax.Array:
    """Average squares of pixels until images [B, H, H, 3] are of `size`, which is H / 2^n."""
    while images.shape[1] > size:
        b, h, w, c = images.shape
        images = jnp.mean(images.reshape(b, h // 2, 2, w // 2, 2, c), (2, 4))
    return images


def normalize(
    images: jax.Array, mean: jax.Array, std: jax.Array, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Convert uint8 images [B, H, W, 3] to (x/255 - mean) / std; mean and std [3] in units of 0..1."""
    mean, std = (jnp.asarray(a, dtype).reshape(1, 1, 1, 3) for a in (mean, std))
    return (images.astype(dtype) / 255 - mean) / std
