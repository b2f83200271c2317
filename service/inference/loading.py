"""From a model's directory to a predictor that has given its example's answer: kinds, loading and warm-up."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement

from service.errors import ConfigurationError, DeviceLost
from service.inference.artifact import MANIFEST, PREVIOUS, REMEDY, Artifact, read_artifact
from service.inference.manifest import Manifest
from service.inference.predictor import EXAMPLE_TOLERANCE, Options, Predictor, answer_check, unpack

KINDS = {
    "tabular": "service.inference.tabular.predictor:load",
    "vision": "service.inference.vision.predictor:load",
}
"""Manifest kind -> ``load(artifact, options) -> Predictor``, imported when first needed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """An artifact, loaded and warmed. ``warning``: why it is the previous one, if it is."""

    manifest: Manifest
    predictor: Predictor
    warning: str | None = None


def import_kinds(models_dir: Path) -> None:
    """Import what the models of a directory need, before workers are forked: they share this memory and start sooner.

    Only what is safe before a fork: torch and OpenVINO start threads, so predictors import them where they compute.
    """
    for path in sorted(models_dir.glob(f"*/{MANIFEST}")):
        with suppress(Exception):  # loading the model says what is wrong with it
            import_module(KINDS[json.loads(path.read_bytes())["kind"]].partition(":")[0])


def load_current(directory: Path, options: Options, manifest_name: str = MANIFEST) -> LoadedModel:
    """The current pair, loaded and warmed; raises ConfigurationError."""
    artifact = read_artifact(directory, manifest_name)
    try:
        predictor = load_predictor(artifact, options)
    except (ConfigurationError, DeviceLost):
        raise
    except Exception as error:  # whatever is wrong with one model must not stop the others
        logger.exception("The model %s cannot be loaded.", artifact.manifest.name)
        raise ConfigurationError(
            f"The model {artifact.manifest.name} cannot be loaded ({error!r}): {REMEDY}."
        ) from None
    warm_up(predictor, artifact)
    return LoadedModel(artifact.manifest, predictor)


def load_model(directory: Path, options: Options) -> LoadedModel:
    """The current pair, or with a warning the previous one; raises the current one's ConfigurationError."""
    try:
        return load_current(directory, options)
    except ConfigurationError as error:
        try:
            model = load_current(directory, options, PREVIOUS)
        except ConfigurationError:
            raise error from None
        warning = f"Serving the previous version of {directory.name}. {error}"
        logger.warning(warning)
        return replace(model, warning=warning)


def load_predictor(artifact: Artifact, options: Options) -> Predictor:
    """Import the artifact's kind and load it; raises ConfigurationError with the file and the remedy."""
    manifest = artifact.manifest
    if manifest.kind not in KINDS:
        known = ", ".join(KINDS)
        raise ConfigurationError(f"Model {manifest.name} is of an unknown kind: {manifest.kind!r:.80}, not {known}.")
    _check_requirements(manifest)
    options = replace(options, max_batch_size=manifest.max_batch_size or options.max_batch_size)
    module, _, function = KINDS[manifest.kind].partition(":")
    predictor: Predictor = getattr(import_module(module), function)(artifact, options)
    return predictor


def _check_requirements(manifest: Manifest) -> None:
    """Raises ConfigurationError for the first that the environment lacks, or has in another version."""
    for needed in map(Requirement, manifest.requirements):
        if needed.marker is not None and not needed.marker.evaluate():
            continue
        where = f"The model {manifest.name} needs {needed}"
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            raise ConfigurationError(f"{where}: install it into this environment.") from None
        if not needed.specifier.contains(found, prereleases=True):
            raise ConfigurationError(f"{where}, but {needed.name} {found} is installed.")


def warm_up(predictor: Predictor, artifact: Artifact) -> None:
    """Ask the manifest's example, once; raises ConfigurationError when the answer is not the one it gave when made."""
    manifest = artifact.manifest
    name, example = manifest.name, manifest.example
    try:
        payload = predictor.parse(example.inputs, b"", "application/json").payload
        answer = predictor.predict([payload])[0] if payload is not None else ValueError("it has no payload")
        vector = unpack(answer) if isinstance(answer, bytes) else None
    except Exception as error:
        answer, vector = error, None
    if vector is None or isinstance(answer, Exception):
        raise ConfigurationError(f"Model {name} fails on its own example ({answer!r}): make or register it again.")
    # Other processors and libraries move last bits; a wrong model is further off.
    tolerance: float = getattr(predictor, "example_tolerance", EXAMPLE_TOLERANCE)
    if vector.shape != (len(example.golden),) or not np.allclose(vector, example.golden, rtol=0, atol=tolerance):
        raise ConfigurationError(f"Model {name} no longer gives its example's answer: make or register it again.")
    if not answer_check(manifest)(answer):
        said = f"{vector.dtype.name} {vector.tolist()}"
        raise ConfigurationError(f"Model {name} answers its example with what its manifest does not allow: {said:.99}.")
