"""The process of one part.

python -m ghn_jax.bringup.process PART SECONDS RESULT SETTINGS
"""

import pathlib
import sys

from ghn_jax.base import cli, executables, files
from ghn_jax.base.start import start
from ghn_jax.bringup import parts, settings


def main(name: str, seconds: str, result: str, text: str) -> None:
    """Run a part; write what it has found, whole, whenever it has found more."""
    read = settings.from_json(text)
    with cli.errors_in_one_line():
        start()
        executables.read_from(read.executables or None)
        for found in parts.function_of(name)(read, float(seconds)):
            files.write_json(pathlib.Path(result), found)


if __name__ == '__main__':
    main(*sys.argv[1:])
