"""Take the last version of a model back: ``python -m training.rollback NAME``. Once more, and it is there again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from service.errors import ConfigurationError
from service.inference.artifact import PREVIOUS, swap_previous
from training import MODELS_DIR, check_name, sentences


def rollback(directory: Path) -> bool:
    """As ``swap_previous``. Raises ConfigurationError also where there is no previous version."""
    require_previous(directory)
    return swap_previous(directory)


def require_previous(directory: Path) -> None:
    """Raises ConfigurationError where there is none."""
    if not (directory / PREVIOUS).exists():
        raise ConfigurationError(f"{directory} has no previous version: there is none beside the current one.")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.rollback", description="Take the last version back.")
    parser.add_argument("name", help="of the model")
    parser.add_argument("--models", type=Path, default=MODELS_DIR, help="default: PREDICT_MODELS_DIR")
    options = parser.parse_args(arguments)
    directory = options.models / options.name
    with sentences(f"{directory} cannot be written to"):
        check_name(options.name)
        is_sound = rollback(directory)
    other = "" if is_sound else " The version that was current is broken, so there is no other one now."
    print(f"{directory}: the previous version is the current one.{other} The service loads it at SIGHUP.")


if __name__ == "__main__":
    main()
