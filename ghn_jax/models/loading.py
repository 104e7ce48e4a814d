"""Models by the name that a command line has for them: `package.module:function`."""

import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import jax

from ghn_jax.base.errors import UserError, one_line, shown
from ghn_jax.models.model import Model
from ghn_jax.models.tracing import trace


def load_model(name: str, input_shape: Sequence[int], *arguments: Any) -> Model:
    """Call a function that makes a model, and trace the model. What no bits round of it is said on stderr.

    Args:
      name: 'package.module:function'. The function returns a Flax module, a pair (apply, params) of a
        function of parameters and images and its parameters, or a `Model` that it has traced by itself.
      input_shape: of the images, as for `trace`; a `Model` has its own.
      *arguments: what the function is given: nothing, or the factor of its width.

    Raises:
      UserError: no such module or function, one that fails (with its own error), and as `trace`.
    """
    module_name, colon, function_name = name.partition(':')
    if not colon or not module_name or not function_name:
        raise UserError(f'model {shown(name)}: expected package.module:function, as in nets:resnet')
    if module_name.endswith('.py') or '/' in module_name:
        raise UserError(
            f'model {shown(name)}: expected a module as Python imports it, not a file, such as '
            f'nets:{function_name}'
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as e:
        raise UserError(
            f'module {module_name!r} cannot be imported: {type(e).__name__}: {one_line(e)}'
        ) from e
    make = getattr(module, function_name, None)
    if not callable(make):
        has = 'is no function' if hasattr(module, function_name) else 'is not there'
        raise UserError(f'{function_name!r} of module {module_name!r} {has}: give one that returns a model')
    try:
        inspect.signature(make).bind(*arguments)
    except TypeError as e:
        wanted = 'the factor of its width, such as 1.0, alone' if arguments else 'no arguments'
        raise UserError(f'{name} has to take {wanted}: {e}') from None
    try:
        made: Any = make(*arguments)
    except (Exception, SystemExit) as e:
        raise UserError(f'{name} fails: {type(e).__name__}: {one_line(e)}') from e
    if isinstance(made, Model):
        traced = made
    else:
        model, params = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        traced = trace(model, input_shape, params=params)
    if traced.kept:
        parameter, why = next(iter(traced.kept.items()))
        print(
            f'warning: of model {traced.name!r}, {len(traced.kept)} of {len(jax.tree.leaves(traced.params))} '
            f'parameters are neither predicted nor rounded, whatever the bits: {parameter!r} {why}',
            file=sys.stderr,
        )
    return traced
