"""A model on disk: ``MODELS_DIR/<name>/manifest.json`` and the files it names by digest: weights, and maybe parts.

A directory holds at most two models: the current one, and ``manifest.previous.json`` with its files to fall back on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from service.errors import ConfigurationError
from service.inference.manifest import PROBABILITIES, Manifest, reason

MANIFEST, PREVIOUS = "manifest.json", "manifest.previous.json"
REPLACED = "manifest.replaced.json"
"""The manifest that was current, while ``swap_previous`` is at work."""
REQUIREMENTS = "requirements.txt"
"""Of the current pair, for pip."""
DECISIVE = {"weights", "parts", "features", "rows", "image", "classes", "output"}
"""What of a manifest decides how a question is answered. Where it is the same, so is the version."""
REMEDY = "run `make train`, register the model again, or remove the directory"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest and the very bytes whose digests it names."""

    manifest: Manifest
    weights: bytes
    parts: tuple[bytes, ...] = ()

    def file(self, extension: str) -> bytes | None:
        """The contents of the file with this extension, if there is one."""
        files = zip(self.manifest.files, (self.weights, *self.parts), strict=True)
        return next((data for named, data in files if named.file.endswith(f".{extension}")), None)


def discover(models_dir: Path) -> list[Path]:
    """The model directories, sorted by name; raises ConfigurationError when there are none.

    A directory without a manifest is none, such as the ``lost+found`` of every ext4 volume.
    """
    found = sorted(p for p in models_dir.iterdir() if p.is_dir() and p.name[0] != ".") if models_dir.is_dir() else []
    # os.path and not pathlib: False also where a directory is not ours to look into.
    models = [p for p in found if any(os.path.exists(p / name) for name in (MANIFEST, PREVIOUS))]
    for other in set(found) - set(models):
        logger.warning("%s has no manifest that can be read, and is passed by.", other)
    if not models:
        raise ConfigurationError(f"There is no model in {models_dir}: run `make train`, or set PREDICT_MODELS_DIR.")
    return models


def read_artifact(directory: Path, manifest_name: str = MANIFEST) -> Artifact:
    """Manifest and files, each read once and the digest checked; raises ConfigurationError."""
    manifest = _read_manifest(directory, manifest_name)
    weights, *parts = (_read(directory / named.file) for named in manifest.files)
    for named, data in zip(manifest.files, (weights, *parts), strict=True):
        if hashlib.sha256(data).hexdigest() != named.sha256:
            path = directory / named.file
            raise ConfigurationError(
                f"{path} is not the file that {manifest_name} names (truncated or changed): {REMEDY}."
            )
    return Artifact(manifest, weights, tuple(parts))


def write_artifact(directory: Path, artifact: Artifact) -> None:
    """Publish: a reader, or a crash at any point, sees the old model or the new one, never half of one.

    The one that was current, if it was sound, becomes the previous one; files of neither are deleted.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for named, data in zip(artifact.manifest.files, (artifact.weights, *artifact.parts), strict=True):
        _replace(directory / named.file, data)
    _keep_previous(directory, artifact)
    _make_current(directory, artifact.manifest, artifact.manifest.model_dump_json(indent=2).encode() + b"\n")
    _delete_unnamed(directory, artifact.manifest)


def swap_previous(directory: Path) -> bool:
    """Make the previous model the current one, and the current one the previous one. Returns False if that was broken:
    then there is no previous one any more. Raises ConfigurationError if the previous one is broken.

    A reader, or a crash at any point, sees one of the two models, whole. No crash loses one: the next call goes on.
    """
    manifest = read_artifact(directory, PREVIOUS).manifest
    current, previous, replaced = (directory / name for name in (MANIFEST, PREVIOUS, REPLACED))
    text = previous.read_bytes()
    if current.exists() and current.read_bytes() != text:  # otherwise an earlier call came so far, and crashed
        _replace(replaced, current.read_bytes())
    _make_current(directory, manifest, text)
    try:
        read_artifact(directory, REPLACED)
        _replace(previous, replaced.read_bytes())
    except ConfigurationError:
        previous.unlink()
    _delete_unnamed(directory, manifest)
    return previous.exists()


def fingerprint(
    artifact: Artifact,
    *,
    preprocessing: str,
    libraries: Mapping[str, str],
    device: str = "cpu",
    precision: str = "float64",
) -> bytes:
    """32 bytes that name all that can change an answer or how it is shown.

    ``preprocessing``: version of the predictor's own code between a question and the model. ``libraries``: name and
    version of each library that computes. Bounds are left out: they decide what is asked, not what is answered.
    """
    manifest = artifact.manifest
    facts: dict[str, object] = {
        "kind": manifest.kind,
        "weights": "+".join(named.sha256 for named in manifest.files),
        "features": [f.name for f in manifest.features],
        "image": manifest.image and manifest.image.model_dump(mode="json"),
        "classes": [(c.value, c.label) for c in manifest.classes],
        "preprocessing": preprocessing,
        "libraries": dict(libraries),
        "device": device,
        "precision": precision,
    }
    if manifest.output != PROBABILITIES:
        facts["output"] = manifest.output.model_dump(mode="json")
    if manifest.rows != "array":
        facts["rows"] = [manifest.rows, [(f.type, f.values, f.dtype) for f in manifest.features]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).digest()


def library_versions(*names: str) -> dict[str, str]:
    """Installed version of each distribution."""
    return {name: version(name) for name in names}


def _read_manifest(directory: Path, manifest_name: str) -> Manifest:
    path = directory / manifest_name
    try:
        manifest = Manifest.model_validate_json(_read(path))
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {reason(error)}: {REMEDY}.") from None
    if manifest.name != directory.name:
        raise ConfigurationError(f"{path} is of a model called {manifest.name!r}: rename its directory to that.")
    return manifest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}): {REMEDY}.") from None


def _replace(path: Path, data: bytes) -> None:
    """Write beside, sync, rename, sync the directory: after a power cut the file is the old or the new one, whole."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".new", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_current(directory: Path, manifest: Manifest, text: bytes) -> None:
    if manifest.requirements:
        _replace(directory / REQUIREMENTS, "\n".join([*manifest.requirements, ""]).encode())
    else:
        (directory / REQUIREMENTS).unlink(missing_ok=True)
    _replace(directory / MANIFEST, text)


def _keep_previous(directory: Path, new: Artifact) -> None:
    try:
        current = read_artifact(directory).manifest
    except ConfigurationError:
        return  # none yet, or broken: the older pair, if any, is still the one to fall back on
    if current.model_dump(include=DECISIVE) != new.manifest.model_dump(include=DECISIVE):
        _replace(directory / PREVIOUS, (directory / MANIFEST).read_bytes())


def _delete_unnamed(directory: Path, current: Manifest) -> None:
    (directory / REPLACED).unlink(missing_ok=True)
    keep = {MANIFEST, PREVIOUS, *(named.file for named in current.files)}
    with suppress(ConfigurationError):  # there is no previous one yet
        keep.update(named.file for named in _read_manifest(directory, PREVIOUS).files)
    for path in directory.iterdir():
        if path.name not in keep and path.stem.isalnum() and len(path.stem) == 64:
            path.unlink()
