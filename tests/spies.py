"""Counting calls of a function, whichever modules have imported it by name."""

import sys
from collections.abc import Callable

import pytest


def calls_of(monkeypatch: pytest.MonkeyPatch, function: Callable) -> list:
    """The first arguments that a function of the package is called with from now on, in order."""
    calls = []

    def spy(first, *args, **kwargs):
        calls.append(first)
        return function(first, *args, **kwargs)

    places = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith('ghn_jax') and vars(module).get(function.__name__) is function
    ]
    assert places
    for module in places:
        monkeypatch.setattr(module, function.__name__, spy)
    return calls
