"""An estimator's file, and whose code computes the model's answers. To load a pickle runs code; to load skops' format
runs none."""

from __future__ import annotations

import gc
import hashlib
import io
import sys
import warnings
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import joblib
import numpy as np
from sklearn.exceptions import InconsistentVersionWarning

from service.errors import ConfigurationError

ALWAYS = {"numpy": "numpy", "sklearn": "scikit-learn"}
"""Packages that take part in every answer, and their distributions."""
INSTALLED = {"site-packages", "dist-packages"}
MODULE = "put what was defined there into a module, import it from there, and write again"
DATA = (str, bytes, int, float, complex, bool, type(None))


class OtherVersion(ConfigurationError):
    """``version``: of the scikit-learn that has written the file."""

    def __init__(self, where: str, other: InconsistentVersionWarning) -> None:
        self.version: str = other.original_sklearn_version
        super().__init__(
            f"{where} was written by scikit-learn {self.version}, and this is {other.current_sklearn_version}, in "
            "which it may answer otherwise: install that version here, fit and write the model with this one, or say "
            "--any-version."
        )


def load_estimator(
    weights: bytes, extension: str, trusted: Collection[str], where: str, *, any_version: bool = True
) -> Any:
    """Raises ConfigurationError. ``trusted``: the types that a .skops file may hold, beside those that skops knows.
    ``where``: what an error calls the model. ``any_version``: also take a file that another scikit-learn has written.
    Such a file may answer wrongly without an error."""
    is_skops = extension == "skops"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if any_version else "error", InconsistentVersionWarning)
            return _load_skops(weights, trusted, where) if is_skops else joblib.load(io.BytesIO(weights))
    except ConfigurationError:
        raise
    except InconsistentVersionWarning as other:
        raise OtherVersion(where, other) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ConfigurationError(
            f"{where} needs the module {error.name}: install {package} into this environment, or if it is your own, "
            "put its directory on PYTHONPATH."
        ) from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        remedy = f"write it again with {'skops.io' if is_skops else 'joblib'}.dump, and register it again"
        if isinstance(error, AttributeError) and "__main__" in reason:
            remedy = f"it was defined in a notebook or script: {MODULE}"
        raise ConfigurationError(f"{where} cannot be read ({reason}): {remedy}.") from None


def _load_skops(weights: bytes, trusted: Collection[str], where: str) -> Any:
    from skops.io import get_untrusted_types, loads

    found = get_untrusted_types(data=weights)
    # The operator says which types are trusted, never the file itself.
    if refused := [name for name in found if name not in trusted]:
        raise ConfigurationError(
            f"{where} holds {', '.join(refused)}: if you trust it, name it in PREDICT_TRUSTED_TYPES (--trust to "
            "register)."
        )
    return loads(weights, trusted=found)


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
