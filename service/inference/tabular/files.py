"""An estimator from the bytes of its file. To load a pickle runs code; to load skops' format runs none."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection
from typing import Any

import joblib
from sklearn.exceptions import InconsistentVersionWarning

from service.errors import ConfigurationError
from service.inference.tabular.dependencies import MODULE


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
    ``where`` names the model in it. ``any_version``: also what another scikit-learn has written, which may answer
    wrongly without a word."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if any_version else "error", InconsistentVersionWarning)
            return _load_skops(weights, trusted, where) if extension == "skops" else _unpickle(weights, where)
    except InconsistentVersionWarning as other:
        raise OtherVersion(where, other) from None


def _unpickle(weights: bytes, where: str) -> Any:
    """Execute the pickle."""
    try:
        return joblib.load(io.BytesIO(weights))
    except InconsistentVersionWarning:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ConfigurationError(
            f"{where} needs the module {error.name}: install {package} into this environment, or if it is your own, "
            "put its directory on PYTHONPATH."
        ) from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        remedy = "write it again with joblib.dump, and register it again"
        if isinstance(error, AttributeError) and "__main__" in reason:
            remedy = f"it was defined in a notebook or script: {MODULE}"
        raise ConfigurationError(f"{where} cannot be unpickled ({reason}): {remedy}.") from None


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
    except InconsistentVersionWarning:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(
            f"{where} cannot be read ({reason}): write it again with skops.io.dump, and register it again."
        ) from None
    raise ConfigurationError(
        f"{where} holds {', '.join(refused)}: if you trust it, name it in PREDICT_TRUSTED_TYPES (--trust to register)."
    )
