"""The weights of an image model, as arrays. torch is imported only for a file, or a type, that NumPy cannot read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.inference.artifact import Artifact
from service.inference.manifest import Image
from service.inference.vision.resnet import Network, Shape, describe

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, NDArray[np.float32]]
Tensors: TypeAlias = "dict[str, NDArray[Any] | Tensor]"


def network_of(artifact: Artifact, spec: Image) -> tuple[Network, State]:
    """What an artifact's network is made of, and its weights; raises ConfigurationError."""
    file, classes = artifact.manifest.weights.file, len(artifact.manifest.classes)
    made = describe(spec.architecture, len(spec.mode))
    shapes, tensors = made.shapes(classes), read_state(artifact.weights, file)
    if faults := list(_faults(tensors, shapes)):
        raise ConfigurationError(f"{file} does not fit {made.name} with {classes} classes: {', and '.join(faults)}.")
    try:
        return made, {name: _as_float32(tensors[name]) for name in shapes}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{file} has weights that cannot be read ({error}).") from error


def read_state(weights: bytes, file: str) -> Tensors:
    """The tensors of a state dict by name; nothing in the file is executed. Raises ConfigurationError."""
    try:
        tensors = _read_safetensors(weights) if file.endswith(".safetensors") else _read_pickle(weights)
        for name, tensor in tensors.items():
            if not (isinstance(name, str) and hasattr(tensor, "shape")):
                raise TypeError(f"its member {name!r:.80} is no tensor with a name")
    except ImportError as error:
        raise ConfigurationError(f"{file} cannot be read without the package {error.name}.") from error
    except Exception as error:
        raise ConfigurationError(
            f"{file} is not a plain state dict ({error!s:.300}); save `model.state_dict()`."
        ) from error
    return tensors


def _read_safetensors(weights: bytes) -> Tensors:
    try:
        tensors: Tensors = import_module("safetensors.numpy").load(weights)
    except KeyError:  # a type that NumPy does not have
        tensors = import_module("safetensors.torch").load(weights)
    return tensors


def _read_pickle(weights: bytes) -> Tensors:
    tensors: Tensors = import_module("torch").load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    return tensors


def _faults(tensors: Tensors, shapes: dict[str, Shape]) -> Iterator[str]:
    """The first that is missing, the first that is too many, and the first that is of another kind."""
    counters = {name.replace("running_mean", "num_batches_tracked") for name in shapes}
    for name in [name for name in shapes if name not in tensors][:1]:
        yield f"{name} is missing"
    for name in [name for name in tensors if name not in shapes.keys() | counters][:1]:
        yield f"{name!r:.80} is no part of it"
    for name, shape in shapes.items():
        if name in tensors:
            found, kind = tuple(tensors[name].shape), str(tensors[name].dtype)
            if found != shape or "float" not in kind:
                yield f"{name} is {kind} of the shape {list(found)}, not floating-point of {list(shape)}"
                return


def _as_float32(tensor: NDArray[Any] | Tensor) -> NDArray[np.float32]:
    if isinstance(tensor, np.ndarray):
        array = tensor
    elif str(tensor.dtype) == "torch.bfloat16":
        # The upper half of a float32. torch would start a pool of threads to widen it.
        halves = tensor.detach().view(import_module("torch").int16).numpy()
        array = (halves.astype(np.int32) << 16).view(np.float32)
    else:
        array = tensor.detach().numpy()
    return np.ascontiguousarray(array, np.float32)
