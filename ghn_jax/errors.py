"""The exceptions that commands end with in one line, as opposed to "the program is wrong"."""


class UserError(ValueError):
    """Bad input. The message is one line: what came, what was expected, what to do.

    Entry points print it as `error: ...` and exit with code 2 (`ghn_jax.cli.run`).
    """


class NotFinite(UserError):
    """Training that no longer computes numbers; exit code 3."""


class Stopped(Exception):
    """Training ended at a signal, with everything saved; exit code 75 (`ghn_jax.stopping`)."""
