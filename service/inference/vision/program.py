"""A network in torch, as it was exported when it was registered: for a GPU, and for a CPU without OpenVINO."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule

from service.errors import ConfigurationError
from service.inference.artifact import Artifact
from service.inference.vision.images import Array


def restore(artifact: Artifact) -> ExportedProgram:
    """From images × height × width × channels to what is answered; raises ConfigurationError."""
    manifest, data = artifact.manifest, artifact.file("pt2")
    if data is None:
        raise ConfigurationError(
            f"Model {manifest.name} has no program for torch: make it again with training.resnet or training.register, "
            "or, if it was an ONNX file, install openvino and set PREDICT_DEVICE=cpu."
        )
    try:
        return torch.export.load(io.BytesIO(data))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"torch cannot load {manifest.name} ({reason:.200}): register it again.") from error


def module(program: ExportedProgram, device: torch.device | str = "cpu") -> GraphModule:
    """To be called on that device, and after ``to`` with another precision."""
    found = move_to_device_pass(program, device).module(check_guards=False)
    # What was asserted of its tensors, their precision too, held where it was exported.
    for check in found.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        found.graph.erase_node(check)
    found.recompile()
    return found


def compute(program: ExportedProgram, threads: int) -> Callable[[Array], Array]:
    """The network as a function, on so many threads of the CPU."""
    torch.set_num_threads(threads)
    network = module(program).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def infer(images: Array) -> Array:
        answers: Array = network(torch.from_numpy(images)).numpy()
        return answers

    return infer
