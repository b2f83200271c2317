"""Whose code computes a model's answers: the versions of libraries, and the source of modules of one's own."""

from __future__ import annotations

import gc
import hashlib
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np

from service.errors import ConfigurationError

ALWAYS = {"numpy": "numpy", "sklearn": "scikit-learn"}
"""Packages that take part in every answer, and their distributions."""
INSTALLED = {"site-packages", "dist-packages"}
MODULE = "put what was defined there into a module, import it from there, and write again"
DATA = (str, bytes, int, float, complex, bool, type(None))


def dependencies(model: Any) -> dict[str, str]:
    """Distribution -> version, and module of one's own -> digest of its source, of all that the model is made of.

    Modules of one's own are followed to those that they import. Python's and this service's are left out.
    """
    found = {distribution: version(distribution) for distribution in ALWAYS.values()}
    own, pending = set(), _modules_of(model)
    if "__main__" in pending:
        raise ConfigurationError(f"A part of this {type(model).__name__} is defined in a notebook or script: {MODULE}.")
    while pending:
        name = pending.pop()
        package = name.partition(".")[0]
        if name in own or package in ALWAYS or package in sys.stdlib_module_names or package == "service":
            continue
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None or INSTALLED.intersection(Path(file).parts):
            distribution = _distribution(package)
            if distribution is not None:
                found[distribution] = version(distribution)
            continue
        own.add(name)
        found[name] = "sha256:" + hashlib.sha256(Path(file).read_bytes()).hexdigest()
        pending |= set(_imported_by(sys.modules[name]))
    return found


def _distribution(package: str) -> str | None:
    try:
        version(package)
    except PackageNotFoundError:  # it has another name than its module, which takes long to find
        return next(iter(packages_distributions().get(package, ())), None)
    return package


def _modules_of(model: Any) -> set[str]:
    """The modules of the classes and functions of all objects that the model holds."""
    names: set[str] = set()
    seen: set[int] = set()
    pending = [model]
    while pending:
        thing = pending.pop()
        if id(thing) in seen or isinstance(thing, DATA):
            continue
        seen.add(id(thing))
        if isinstance(thing, ModuleType):
            names.add(thing.__name__)
        elif isinstance(thing, type | FunctionType | BuiltinFunctionType):
            names.update(_modules_defining(thing))
        else:
            names.update(_modules_defining(type(thing)))
            objects = isinstance(thing, np.ndarray) and thing.dtype.hasobject
            pending += thing.ravel().tolist() if objects else gc.get_referents(thing)
    return names


def _modules_defining(thing: Any) -> Iterator[str]:
    for definition in getattr(thing, "__mro__", (thing,)):
        if isinstance(module := getattr(definition, "__module__", None), str):
            yield module


def _imported_by(module: ModuleType) -> Iterator[str]:
    for value in vars(module).values():
        if isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(value, type | FunctionType):
            yield from _modules_defining(value)
