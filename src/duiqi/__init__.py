"""duiqi (对齐): from a base language model and preferences to an aligned model.

`run` trains a stage, `load_model` and `load_reward_model` open what it made. Nothing is imported until it is used;
the types are in `__init__.pyi`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["__version__", "load_model", "load_reward_model", "run"]

_HOMES = {
    "run": "duiqi.api",
    "load_model": "duiqi.models.loading",
    "load_reward_model": "duiqi.models.reward",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("duiqi")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'duiqi' has no attribute {name!r}")
