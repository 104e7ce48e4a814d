"""What the surroundings of a command ask of JAX, judged before the work: variables, and the devices."""

import jax

from ghn_jax.base.errors import UserError, one_line


def check() -> None:
    """Raise UserError for settings that no command works with; no device is started."""
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError('JAX_ENABLE_X64 is set: networks are trained and run in 32 bits: unset it')


def start_devices() -> None:
    """Start JAX's devices; to be called once nothing more is to be said of them.

    Raises:
      UserError: JAX_PLATFORMS asks for what is not there.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as e:  # the latter, without a word, where a GPU is not there
        wanted = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        reason = one_line(e)
        if not wanted:
            raise UserError(f'JAX cannot start its devices: {reason}') from None
        raise UserError(
            f'JAX_PLATFORMS={wanted}: there are no such devices that JAX can use; here is {_found()}: give '
            f'that, or unset it{f" ({reason})" if reason else ""}'
        ) from None


def _found() -> str:
    """The platform that JAX takes where it is not told which."""
    try:
        jax.config.update('jax_platforms', None)
        return jax.default_backend()
    except (RuntimeError, AssertionError):
        return 'none'
