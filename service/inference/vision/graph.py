"""A ResNet as a graph for OpenVINO, which computes it on a CPU faster than torch does."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

from service.inference.manifest import Image
from service.inference.vision.resnet import Block, Convolution, Network
from service.inference.vision.runner import Compute
from service.inference.vision.state_dict import State

EPSILON = 1e-5
"""What torch's batch norms add to a variance."""


def fold(network: Network, state: State) -> None:
    """Each batch norm into the convolution before it, in place: ``norm.bias`` is then what is added."""
    for layer in network.convolutions:
        weight, norm = f"{layer.name}.weight", layer.norm
        gamma, mean, variance = (state.pop(f"{norm}.{part}") for part in ("weight", "running_mean", "running_var"))
        scale = gamma / np.sqrt(variance + np.float32(EPSILON))
        state[weight] = state[weight] * scale[:, None, None, None]
        state[f"{norm}.bias"] = (state[f"{norm}.bias"] - mean * scale).reshape(1, -1, 1, 1)


def compute(network: Network, folded: State, spec: Image, threads: int, images: int) -> Compute:
    """The network as a function of so many images at a time, or with -1 of any number."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # or it would take bfloat16 where the CPU has it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
    }
    graph = Graph(folded).of(network, (images, *spec.size, len(spec.mode)))
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()

    def infer(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        probabilities: NDArray[np.float32] = request.infer([batch], share_inputs=True)[0]
        return probabilities

    return infer


class Graph:
    """Makes nodes that compute with the arrays of ``folded``."""

    def __init__(self, folded: State) -> None:
        self._folded = folded

    def of(self, network: Network, shape: tuple[int, ...]) -> openvino.Model:
        """Probabilities of images × height × width × channels."""
        images = ops.parameter(list(shape), np.float32)
        x = ops.transpose(images, [0, 3, 1, 2])
        x = ops.relu(self._convolution(network.first, x))
        # Every ResNet's: stride 2, padding 1, 3 × 3.
        x = ops.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
        for block in network.blocks:
            x = self._block(block, x)
        x = ops.reduce_mean(x, [2, 3], keep_dims=False)
        logits = ops.add(ops.matmul(x, self._array("fc.weight"), False, True), self._array("fc.bias"))
        return openvino.Model([ops.softmax(logits, 1)], [images])

    def _block(self, block: Block, x: Any) -> Any:
        *first, last = block.row
        y = x
        for convolution in first:
            y = ops.relu(self._convolution(convolution, y))
        shortcut = x if block.shortcut is None else self._convolution(block.shortcut, x)
        return ops.relu(ops.add(self._convolution(last, y), shortcut))

    def _convolution(self, layer: Convolution, x: Any) -> Any:
        stride, padding, weight = [layer.stride] * 2, [layer.kernel // 2] * 2, self._array(f"{layer.name}.weight")
        if layer.groups == 1:
            y = ops.convolution(x, weight, stride, padding, padding, [1, 1])
        else:
            shape = [layer.groups, layer.outputs // layer.groups, -1, layer.kernel, layer.kernel]
            y = ops.group_convolution(x, ops.reshape(weight, shape, False), stride, padding, padding, [1, 1])
        return ops.add(y, self._array(f"{layer.norm}.bias"))

    def _array(self, name: str) -> Any:
        """The array's own memory: both graphs of a network share its weights."""
        return ops.constant(self._folded[name], shared_memory=True)
