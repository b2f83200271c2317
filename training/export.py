"""From a network to the files it is served from: torch's exported program, and OpenVINO's graph for CPUs."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from service.errors import ConfigurationError
from service.inference.manifest import Image
from service.inference.vision.cpu import has_openvino
from service.inference.vision.program import module

Meaning = Literal["logits", "probabilities", "numbers"]
"""What a network's numbers are. For logits, the softmax is served."""

Files = Mapping[str, bytes]
"""Extension -> contents: ``pt2``, torch's program, and ``xml`` and ``bin``, OpenVINO's graph."""

CONVOLUTION, NORM = torch.ops.aten.conv2d.default, torch.ops.aten.batch_norm.default
TOLERANCE = 1e-4
"""How far from 1 the sum of probabilities may be."""


class Served(nn.Module):
    """A network as it is served: from images × height × width × channels to what is answered."""

    def __init__(self, network: nn.Module, output: Meaning | None) -> None:
        super().__init__()
        self.network = network
        self.output = output

    def forward(self, images: Tensor) -> Tensor:
        # Channels-last is this very layout under another name, so nothing is copied.
        said: Tensor = self.network(images.permute(0, 3, 1, 2)).float()
        answers = said if said.ndim > 1 else said.unsqueeze(1)
        return torch.softmax(answers, 1) if self.output == "logits" else answers


@torch.no_grad()
def export(network: nn.Module, spec: Image, width: int, output: Meaning | None = None) -> Files:
    """The files of a network that makes ``width`` numbers of an image; raises ConfigurationError.

    The network stays as it is. ``output`` None: probabilities if they look like such, else logits. A network that makes
    one number may return a list of them instead of a column.
    """
    plain = copy.deepcopy(network).cpu().float().to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    served = Served(plain, output)
    images = torch.from_numpy(noise(spec, 2))
    try:
        said = plain(images.permute(0, 3, 1, 2))
    except Exception as error:
        raise ConfigurationError(f"The network cannot compute its images ({one_line(error)}).") from error
    fits = isinstance(said, Tensor) and (said.shape == (2, width) or (width == 1 and said.shape == (2,)))
    if not fits:
        found = f"{list(said.shape)} numbers" if isinstance(said, Tensor) else type(said).__name__
        raise ConfigurationError(f"Of two images the network makes {found}, not {width} for each.")
    if output is None:
        served.output = "probabilities" if are_probabilities(said.numpy()) else "logits"
    program = _program(served, images)
    folded = fold(module(program))
    program = program if folded is None else _program(folded, images)
    graph = openvino_graph(program, spec) if has_openvino() else {}
    file = io.BytesIO()
    torch.export.save(program, file)
    return {"pt2": file.getvalue(), **graph}


def noise(spec: Image, count: int) -> NDArray[np.float32]:
    """Random images, normalised, the same in each call."""
    shape = (count, *spec.size, len(spec.mode))
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def are_probabilities(answers: NDArray[np.float32]) -> bool:
    return bool(answers.min() >= 0 and np.abs(answers.sum(axis=1) - 1).max() <= TOLERANCE)


def one_line(error: Exception) -> str:
    words = "".join(character for character in " ".join(str(error).split()) if character.isprintable())
    return f"{words:.200}"


def _program(network: nn.Module, images: Tensor) -> ExportedProgram:
    """The program for any number of images, or for one where the network fixes it; raises ConfigurationError."""
    try:
        return torch.export.export(network, (images,), dynamic_shapes=({0: Dim("count")},))
    except Exception:
        try:
            return torch.export.export(network, (images[:1],))
        except Exception as error:
            raise ConfigurationError(f"torch.export cannot export the network ({one_line(error)}).") from error


def fold(program: GraphModule) -> GraphModule | None:
    """Fold each batch norm into the convolution before it, so that a GPU has a pass less; None if there is none."""
    graph = program.graph
    norms = [node for node in graph.find_nodes(op="call_function", target=NORM) if _follows_convolution(node)]
    for number, norm in enumerate(norms):
        layer, scale, shift, mean, variance = norm.args[:5]
        weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
        kernel, offset, mu, var, gamma, beta = (
            _array(program, node) for node in (weight, bias, mean, variance, scale, shift)
        )
        folded = fuse_conv_bn_weights(kernel, offset, mu, var, norm.args[7], gamma, beta)
        with graph.inserting_before(layer):
            nodes = []
            for what, array in zip(("weight", "bias"), folded, strict=True):
                program.register_buffer(name := f"folded_{number}_{what}", array.detach().clone())
                nodes.append(graph.get_attr(name))
        layer.args = (layer.args[0], *nodes, *layer.args[3:])
        norm.replace_all_uses_with(layer)
        graph.erase_node(norm)
    graph.eliminate_dead_code()
    program.recompile()
    _drop_unread(program)
    return program if norms else None


def _drop_unread(program: GraphModule) -> None:
    """Delete the weights that folding has replaced: they would be written to the file all the same."""
    read = {node.target for node in program.graph.nodes if node.op == "get_attr"}
    for name in [*dict(program.named_parameters()), *dict(program.named_buffers())]:
        if name not in read:
            owner, _, attribute = name.rpartition(".")
            delattr(program.get_submodule(owner), attribute)


def _follows_convolution(norm: Node) -> bool:
    layer = norm.args[0]
    return isinstance(layer, Node) and layer.target is CONVOLUTION and len(layer.users) == 1 and len(norm.args) > 7


def _array(program: GraphModule, node: Any) -> Any:
    """The weight that a node reads; None stays None."""
    found: Any = program
    for name in node.target.split(".") if node is not None else ():
        found = getattr(found, name)
    return None if node is None else found


def openvino_graph(program: ExportedProgram, spec: Image) -> Files:
    """The program as OpenVINO's graph; raises ConfigurationError."""
    import openvino  # here: a machine may not have it

    try:
        return _saved(openvino.convert_model(program), spec)
    except Exception as error:
        raise ConfigurationError(f"OpenVINO cannot convert the network ({one_line(error)}).") from error


def export_onnx(file: Path, spec: Image, width: int, output: Meaning | None = None) -> Files:
    """The graph alone, of an ONNX file that takes images × channels × height × width; raises ConfigurationError."""
    try:
        import openvino
        from openvino import opset13, preprocess

        steps = preprocess.PrePostProcessor(openvino.convert_model(file))
        steps.input().tensor().set_layout(openvino.Layout("NHWC"))
        steps.input().model().set_layout(openvino.Layout("NCHW"))
        graph = steps.build()
        _leave_open(graph, spec)
        said = openvino.compile_model(graph, "CPU")([noise(spec, 1)])[0]
        if said.shape != (1, width):
            raise ValueError(f"of one image it makes {list(said.shape)} numbers, not {width}")
        if output == "logits" or (output is None and not are_probabilities(said)):
            answers = graph.output(0).get_node().input_value(0)
            graph = openvino.Model([opset13.softmax(answers, 1)], graph.get_parameters())
        return _saved(graph, spec)
    except Exception as error:
        raise ConfigurationError(f"OpenVINO cannot serve {file} ({one_line(error)}).") from error


def _saved(graph: Any, spec: Image) -> Files:
    import openvino

    _leave_open(graph, spec)
    with TemporaryDirectory() as directory:
        openvino.save_model(graph, f"{directory}/graph.xml", compress_to_fp16=False)
        return {extension: (Path(directory) / f"graph.{extension}").read_bytes() for extension in ("xml", "bin")}


def _leave_open(graph: Any, spec: Image) -> None:
    """Fix the size of the images, and leave their number open where the network does."""
    count = graph.input(0).partial_shape[0]
    graph.reshape([-1 if count.is_dynamic else 1, *spec.size, len(spec.mode)])
