"""What every command shares: flags in, one line for bad input, a screen that never fails.

Exit codes: 0 success and --help | 1 a fault of the program, with its traceback | 2 bad input or a disk that
cannot be written, one line on stderr | 3 training whose networks are no longer finite, one line | 75 training
stopped by SIGTERM or SIGINT: all is saved, start again to go on | 130, 143 interrupted (training: by a second
signal).

A screen that fails changes none of these: the work goes on, and a line on stderr says that stdout has lost
something. Only where stdout alone was to have the result (`evaluate` without --json) a full disk behind it is
one that cannot be written. A pipe whose reader has had enough (`| head -1`) is no fault.

A command looks like

    _WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory.')

    def main() -> None:
        print(score(cli.check_workdir(_WORKDIR.value)))

    if __name__ == '__main__':
        cli.run(main)
"""

import contextlib
import os
import pathlib
import re
import shlex
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from logging import CRITICAL, getLogger
from typing import NoReturn

from absl import app, flags, logging

from ghn_jax.base import buckets, files, paths, screen
from ghn_jax.base.errors import FieldError, NotFinite, Stopped, UserError, shown
from ghn_jax.base.paths import Place

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them

EXIT_NOT_FINITE = 3
EXIT_STOPPED = 75  # EX_TEMPFAIL

_LONGEST = 1000  # characters of an error


def run(main: Callable[[], object], flag_of: Mapping[str, str] = types.MappingProxyType({})) -> None:
    """Parse the flags, call `main()` and leave with the exit code described above.

    flag_of: the flags of fields that have a flag of another name. Errors of a field name its flag.
    """
    screen.install()
    try:
        _run(main, flag_of)
    finally:
        screen.finish()


def _run(main: Callable[[], object], flag_of: Mapping[str, str]) -> None:
    try:
        app.run(lambda argv: _quietly(main), flags_parser=_parse)
    except NotFinite as e:
        fail(e, EXIT_NOT_FINITE)
    except UserError as e:
        fail(_named_by_flag(e, flag_of))
    except Stopped as e:
        print(f'stopped: {e}', file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)
    except Exception as e:
        if not buckets.is_failure(e):
            raise
        fail(buckets.failed(e))


def _named_by_flag(error: UserError, flag_of: Mapping[str, str]) -> str:
    """The message, with the name of a flag for that of a field where the command has a flag for it."""
    if not isinstance(error, FieldError):
        return str(error)
    flag = flag_of.get(error.field, error.field)
    return f'--{flag}{error.problem}' if flag in flags.FLAGS else str(error)


def _quietly(main: Callable[[], object]) -> None:
    """Run `main` without the libraries' progress reports, unless --verbosity asks for them."""
    from ghn_jax.base import environment  # imports JAX, which --help and wrong flags need not wait for

    environment.check()
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)
        # Where reading or writing a checkpoint fails, Orbax leaves coroutines and tasks behind that complain
        # when they are collected, each with a stack trace. The failure itself is raised, and said in a line.
        sys.unraisablehook = _report_unraisable
        getLogger('asyncio').setLevel(CRITICAL)
    main()


def _report_unraisable(error) -> None:
    files = [frame.filename for frame in traceback.extract_tb(error.exc_traceback)]
    if not any(f'{os.sep}{name}{os.sep}' in file for file in files for name in ('orbax', 'asyncio')):
        sys.__unraisablehook__(error)


def check_workdir(workdir: str | os.PathLike | None, *, must_exist: bool = False) -> Place:
    """Return the run directory as an absolute path; it is not created here.

    must_exist: it is read only; then `zoo:NAME` may stand in its place, and is returned as it is.

    Raises:
      FieldError: it is not given, is or lies under a file, cannot be written, or is wanted and absent.
    """
    if not workdir:
        raise FieldError('workdir', ' is missing: give the run directory, such as runs/quickstart')
    if not must_exist:
        return check_folder(workdir, 'workdir')
    if paths.zoo_name(workdir) is not None:  # judged when it is read
        return pathlib.Path(workdir)
    path = _absolute(workdir, 'workdir')
    _check_place(path, 'workdir', workdir)
    if not files.exists(path):
        raise FieldError('workdir', f'={workdir} does not exist: give one that ghn_jax.train has written')
    return path


def check_folder(folder: str | os.PathLike, name: str) -> Place:
    """Return a directory to be written to, there or not yet, as an absolute path; it is not created here.

    name: of the argument or flag, for the message (`out`).

    Raises:
      FieldError: it is or lies under a file, is of the zoo, or cannot be written.
    """
    if paths.zoo_name(folder) is not None:
        raise FieldError(name, f'={folder} comes with the package, and is only read: give a directory')
    path = _absolute(folder, name)
    parent = _check_place(path, name, folder)
    if not files.may_write(parent):
        raise FieldError(name, f'={folder}: {parent} cannot be written: give another directory')
    return path


def _check_place(path: Place, name: str, given: str | os.PathLike) -> Place:
    """The nearest of a directory and those above it that exists; FieldError where that is a file."""
    if files.exists(path) and not files.is_folder(path):
        raise FieldError(name, f'={given} is a file: give a directory')
    parent = path
    while not files.exists(parent):
        parent = parent.parent
    if not files.is_folder(parent):
        raise FieldError(name, f'={given} lies under the file {parent}: give another directory')
    return parent


def check_output(path: str | os.PathLike, name: str, suffixes: Sequence[str] = ()) -> Place:
    """Return the path of a file to be written later, judged before the long work.

    That `files.write` can write it is found out as far as can be told without opening it.

    name: of the argument or flag, for the message (`json`). suffixes: what the file's name may end in.

    Raises:
      FieldError: the file cannot be written, or its name ends otherwise.
    """
    out = _absolute(path, name)
    if suffixes and out.suffix not in suffixes:
        raise FieldError(name, f'={path}: expected a name that ends in {", ".join(suffixes)}')
    try:
        target = files.destination(out)
    except OSError as e:
        raise FieldError(name, f'={path} cannot be written ({e.strerror}): give another file') from None
    if target is None:  # a pipe, a device, or in a bucket, where folders are not made
        return out
    if not target.parent.is_dir():
        raise FieldError(name, f'={path}: the directory {target.parent} does not exist: make it first')
    if not files.may_write(target.parent):
        raise FieldError(name, f'={path}: {target.parent} cannot be written: give another file')
    return out


def _absolute(path: str | os.PathLike, name: str) -> Place:
    """The absolute path; FieldError where the system cannot have a file of such a name at all."""
    paths.check_place(path, name)
    if paths.in_bucket(path):
        return paths.place(path, name)
    try:
        absolute = pathlib.Path(path).expanduser().absolute()
        absolute.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # told below, or no fault
    except (OSError, ValueError, RuntimeError) as e:  # too long; a null byte; ~ of nobody
        reason = e.strerror if isinstance(e, OSError) else e
        raise FieldError(name, f'={shown(os.fspath(path))} cannot be used ({reason}): give another') from None
    return absolute


def command_line(command: str) -> str:
    """Return how this process was started, for a shell. command: the name of the module."""
    return shlex.join(['python', '-m', f'ghn_jax.{command}', *sys.argv[1:]])


def _parse(argv: list[str]) -> list[str]:
    if odd := [arg for arg in argv[1:] if arg.endswith('\r')]:
        fail(f'{odd[0]!r} ends in a carriage return: give the script Unix line ends, as with dos2unix')
    try:
        rest = flags.FLAGS(argv)
        paths.check_flags(flags.FLAGS[name] for name in flags.FLAGS)
    except SystemExit:  # --help and its kin print and exit 1
        sys.exit(0)
    except (AttributeError, KeyError) as e:  # ml_collections: "'lrr' Did you mean ..."
        while e.args and isinstance(e.args[0], Exception):  # whose str() would be quoted twice
            e = e.args[0]
        fail(f'no such config key: {e.args[0] if e.args else e}')
    except (flags.Error, ValueError) as e:
        fail(flag_error(e))
    except Exception as e:  # ml_collections, of overrides that make no sense
        fail(f'the flags cannot be read: {type(e).__name__}: {e}')
    if len(rest) > 1:
        fail(f'unexpected argument {rest[1]!r}: flags are written --name=value; see --help')
    return rest


def flag_error(error: Exception) -> str:
    """Return what is wrong with a flag, by what absl or a parser of ours raised."""
    if isinstance(error.__context__, UserError):  # absl words the errors of a parser anew
        return str(error.__context__)
    if isinstance(error, UnicodeDecodeError):
        return '--flagfile names a file that is no UTF-8 text: give one with a flag in each line'
    return str(error).removeprefix('ERROR:: ')


def message_of(error: object) -> str:
    """Return what an error says, on one line; libraries quote tracebacks, and values of any length."""
    text = str(error).replace('\\n', '\n')
    # ml_collections prints the config.
    text = re.sub(r'Other fields present:.*\}"', '', text, flags=re.DOTALL)
    head, trace, tail = text.partition('Traceback (most recent call last):')  # absl quotes whole tracebacks
    text = ' '.join((head + tail.strip().splitlines()[-1] if trace else head).split())
    return text if len(text) <= _LONGEST else text[:_LONGEST] + ' ...'


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Leave at a UserError inside as `run` does: for programs whose arguments are no flags."""
    try:
        yield
    except UserError as e:
        fail(e)


def fail(error: object, code: int = 2) -> NoReturn:
    """Print an error on one line and leave with this exit code."""
    print(f'error: {message_of(error)}', file=sys.stderr)
    sys.exit(code)
