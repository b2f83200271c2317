"""What the predictors of a directory's models are made of, imported before any model is loaded."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from service.inference.artifact import MANIFEST
from service.inference.loading import KINDS


def import_kinds(models_dir: Path) -> None:
    """In the process that workers are forked from, which share this memory and start the sooner.

    Imports only, and of them what is safe before a fork: scikit-learn, but neither torch nor OpenVINO, which start
    threads; predictors import those where they compute.
    """
    for path in sorted(models_dir.glob(f"*/{MANIFEST}")):
        with suppress(OSError, ValueError, AttributeError, KeyError):  # who loads the model says what is wrong
            import_module(KINDS[json.loads(path.read_bytes())["kind"]].partition(":")[0])
