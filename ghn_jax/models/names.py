"""Parameters of a model by name: the leaves of a pytree, called by their path, its parts joined by dots."""

from collections.abc import Callable
from typing import Any

import jax


def variable_names(tree: Any) -> list[str]:
    """Return the names of the leaves of a pytree, in order."""
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree by name, in order."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Return a pytree of the same structure, of function(name, leaf)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_name(path), leaf), tree)


def _name(path: tuple[Any, ...]) -> str:
    parts = []
    for entry in path:
        for attribute in ('key', 'idx', 'name'):
            if hasattr(entry, attribute):
                parts.append(str(getattr(entry, attribute)))
                break
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and parts[-1] == 'value':
        parts.pop()  # of a variable of NNX
    return '.'.join(parts) or 'params'
