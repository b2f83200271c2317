"""Take the last version of a model back: ``python -m training.rollback NAME``. Once more, and it is there again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from service.errors import ConfigurationError
from service.inference.artifact import PREVIOUS, read_artifact, write_artifact
from training import MODELS_DIR


def rollback(directory: Path) -> None:
    """The previous version becomes the current one, and the current one, if it is sound, the previous one; raises
    ConfigurationError."""
    require_previous(directory)
    write_artifact(directory, read_artifact(directory, PREVIOUS))


def require_previous(directory: Path) -> None:
    """Raises ConfigurationError where there is none."""
    if not (directory / PREVIOUS).exists():
        raise ConfigurationError(f"{directory} has no previous version: none was published before the current one.")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.rollback", description="Take the last version back.")
    parser.add_argument("name", help="of the model")
    parser.add_argument("--models", type=Path, default=MODELS_DIR, help="default: PREDICT_MODELS_DIR")
    options = parser.parse_args(arguments)
    try:
        rollback(options.models / options.name)
    except ConfigurationError as error:
        sys.exit(str(error))
    print(f"{options.models / options.name}: the previous version is the current one. The service loads it at SIGHUP.")


if __name__ == "__main__":
    main()
