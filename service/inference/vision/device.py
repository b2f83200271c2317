"""Which device a network runs on, found without importing torch where there can be no GPU."""

from __future__ import annotations

from ctypes import CDLL
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from service.errors import ConfigurationError


def resolve_device(wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Raises ConfigurationError when a GPU is asked for and there is none."""
    if wanted == "cpu" or (wanted == "auto" and not has_driver()):
        return "cpu"
    available = find_spec("torch") is not None and import_module("torch").cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigurationError("PREDICT_DEVICE=cuda, but torch finds no CUDA device; use auto or cpu.")
    return "cuda" if available else "cpu"


def has_driver() -> bool:
    """Whether a GPU's driver is installed, NVIDIA's or AMD's: then only torch can tell whether it is of use."""
    try:
        CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True
