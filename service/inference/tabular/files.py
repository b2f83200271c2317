"""An estimator from the bytes of its file. To load a pickle runs code; to load skops' format runs none."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from service.errors import ConfigurationError
from service.inference.tabular.estimator import unpickle


def load_estimator(
    weights: bytes, extension: str, trusted: Collection[str], where: str, *, any_version: bool = True
) -> Any:
    """Raises ConfigurationError. ``trusted``: the types that a .skops file may hold, beside those that skops knows.
    ``any_version``: also a pickle that another scikit-learn has written."""
    if extension == "skops":
        return _load_skops(weights, trusted, where)
    return unpickle(weights, where, any_version=any_version)


def _load_skops(weights: bytes, trusted: Collection[str], where: str) -> Any:
    try:
        from skops.io import get_untrusted_types, loads
    except ImportError:
        raise ConfigurationError(f"{where} is a .skops file: install skops into this environment.") from None
    try:
        found = get_untrusted_types(data=weights)
        # The operator says which types are trusted, never the file itself.
        refused = [name for name in found if name not in trusted]
        if not refused:
            return loads(weights, trusted=found)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(
            f"{where} cannot be read ({reason}): write it again with skops.io.dump, and register it again."
        ) from None
    raise ConfigurationError(
        f"{where} holds {', '.join(refused)}: if you trust it, name it in PREDICT_TRUSTED_TYPES (--trust to register)."
    )
