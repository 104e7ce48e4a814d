"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""


class UserError(ValueError):
    """Bad input. The message is one line: what came, what was expected, what to do.

    Entry points print it as `error: ...` and exit with code 2 (`ghn_jax.cli.run`).
    """
