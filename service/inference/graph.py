"""A ResNet as a graph for OpenVINO, which computes it on a CPU faster than torch does."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from service.inference.manifest import Image
from service.inference.network import blocks, convolutions
from service.inference.runner import Compute


def compute(folded: ResNet, spec: Image, threads: int, images: int) -> Compute:
    """A network, its batch norms folded, as a function of so many images at a time, or with -1 of any number."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # or it would take bfloat16 where the CPU has it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
    }
    graph = _graph(folded, (images, *spec.size, len(spec.mode)))
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()

    def infer(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        probabilities: NDArray[np.float32] = request.infer([batch], share_inputs=True)[0]
        return probabilities

    return infer


def _graph(network: ResNet, shape: tuple[int, ...]) -> openvino.Model:
    images = ops.parameter(list(shape), np.float32)
    x = ops.transpose(images, [0, 3, 1, 2])
    x = ops.relu(_convolution(network.conv1, x))
    x = ops.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)  # every ResNet's: stride 2, padding 1, 3 × 3
    for block in blocks(network):
        x = _block(block, x)
    x = ops.reduce_mean(x, [2, 3], keep_dims=False)
    logits = ops.add(ops.matmul(x, _constant(network.fc.weight), False, True), _constant(network.fc.bias))
    return openvino.Model([ops.softmax(logits, 1)], [images])


def _block(block: BasicBlock | Bottleneck, x: Any) -> Any:
    *first, last = [getattr(block, f"conv{number}") for number in convolutions(block)]
    y = x
    for convolution in first:
        y = ops.relu(_convolution(convolution, y))
    shortcut = x if block.downsample is None else _convolution(block.downsample[0], x)
    return ops.relu(ops.add(_convolution(last, y), shortcut))


def _convolution(layer: nn.Conv2d, x: Any) -> Any:
    weight, padding = layer.weight, list(layer.padding)
    how = list(layer.stride), padding, padding, list(layer.dilation)
    if layer.groups == 1:
        y = ops.convolution(x, _constant(weight), *how)
    else:
        y = ops.group_convolution(x, _constant(weight.reshape(layer.groups, -1, *weight.shape[1:])), *how)
    return y if layer.bias is None else ops.add(y, _constant(layer.bias.reshape(1, -1, 1, 1)))


def _constant(tensor: Tensor) -> Any:
    """The tensor's own memory, where it is in one piece: both graphs of a network share its weights."""
    return ops.constant(np.ascontiguousarray(tensor.detach().numpy()), shared_memory=True)
