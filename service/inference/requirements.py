"""What a model needs installed, as lines of a ``requirements.txt``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import InvalidRequirement, Requirement

from service.errors import ConfigurationError


def parse_requirements(lines: Iterable[str]) -> tuple[str, ...]:
    """Without comments, hashes and pip's options; raises ConfigurationError for what is no requirement."""
    texts = (line.partition(" #")[0].partition(" --")[0].strip().removesuffix("\\").strip() for line in lines)
    found = tuple(text for text in texts if text and not text.startswith(("#", "-")))
    for text in found:
        _parsed(text)
    return found


def check_requirements(requirements: Sequence[str], where: str) -> None:
    """Raises ConfigurationError for the first that the environment lacks, or has in another version."""
    for requirement in map(_parsed, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            raise ConfigurationError(f"{where} needs {requirement}: install it into this environment.") from None
        if not requirement.specifier.contains(found, prereleases=True):
            raise ConfigurationError(f"{where} needs {requirement}, but {requirement.name} {found} is installed.")


def _parsed(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise ConfigurationError(f"{text!r:.80} is no requirement ({str(error).splitlines()[0]}).") from None
