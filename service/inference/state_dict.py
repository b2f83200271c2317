"""The weights of an image model, as arrays. torch is imported only for files that NumPy cannot read."""

from __future__ import annotations

import io
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.inference.artifact import Artifact
from service.inference.manifest import Image
from service.inference.resnet import Network, network

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, NDArray[Any]]


def network_of(artifact: Artifact, spec: Image) -> tuple[Network, State]:
    """What an artifact's network is made of, and its weights in float32; raises ConfigurationError."""
    file, classes = artifact.manifest.weights.file, len(artifact.manifest.classes)
    made = network(spec.architecture, len(spec.mode))
    shapes, state = made.shapes(classes), read_state(artifact.weights, file)
    found = {name: array.shape for name, array in state.items() if not name.endswith(".num_batches_tracked")}
    for name in sorted(shapes.keys() | found.keys()):
        if shapes.get(name) != found.get(name):
            reason = f"{name} is {_shown(found.get(name))}, not {_shown(shapes.get(name))}"
            raise ConfigurationError(f"{file} does not fit {made.name} with {classes} classes: {reason}.")
    return made, {name: np.ascontiguousarray(state[name], np.float32) for name in shapes}


def read_state(weights: bytes, file: str) -> State:
    """The arrays of a state dict by name; nothing in the file is executed. Raises ConfigurationError."""
    try:
        return _read_safetensors(weights) if file.endswith(".safetensors") else _read_pickle(weights)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"{file} is not a plain state dict ({reason}); save `model.state_dict()`.") from error


def _read_safetensors(weights: bytes) -> State:
    try:
        state: State = import_module("safetensors.numpy").load(weights)
    except KeyError:  # a type that NumPy does not have
        return _arrays(import_module("safetensors.torch").load(weights))
    return state


def _read_pickle(weights: bytes) -> State:
    return _arrays(import_module("torch").load(io.BytesIO(weights), map_location="cpu", weights_only=True))


def _arrays(tensors: dict[str, Tensor]) -> State:
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        for name, tensor in tensors.items()
    }


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " × ".join(map(str, shape))
