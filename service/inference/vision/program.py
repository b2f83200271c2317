"""A network in torch, as it was exported when it was registered: for a GPU, and for a CPU without OpenVINO."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule

from service.errors import ConfigurationError
from service.inference.artifact import Artifact
from service.inference.vision.runner import Compute

LIBRARIES: tuple[str, ...] = ("torch",)
CPU = torch.device("cpu")


def restore(artifact: Artifact) -> ExportedProgram:
    """From images × height × width × channels to what is answered; raises ConfigurationError."""
    manifest, data = artifact.manifest, artifact.file("pt2")
    if data is None:
        raise ConfigurationError(f"Model {manifest.name} is for CPUs only: set PREDICT_DEVICE=cpu.")
    try:
        return torch.export.load(io.BytesIO(data))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"torch cannot load {manifest.name} ({reason:.200}): register it again.") from error


def to_bytes(program: ExportedProgram) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def module(program: ExportedProgram, device: torch.device = CPU) -> GraphModule:
    """To be called on that device, and after ``to`` with another precision."""
    found = move_to_device_pass(program, device).module(check_guards=False)
    # What was asserted of its tensors, their precision too, held where it was exported.
    for check in found.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        found.graph.erase_node(check)
    found.recompile()
    return found


def takes_batches(program: ExportedProgram) -> bool:
    """Whether the number of images was left open."""
    return bool(program.range_constraints)


def compute(program: ExportedProgram) -> Compute:
    """The network as a function, on the CPU."""
    network = module(program).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def infer(images: NDArray[np.float32]) -> NDArray[np.float32]:
        answers: NDArray[np.float32] = network(torch.from_numpy(images)).numpy()
        return answers

    return infer


def use_threads(count: int) -> None:
    """How many threads torch computes with; the second pool that it would start stays at one."""
    torch.set_num_threads(count)
    if torch.get_num_interop_threads() != 1:
        with suppress(RuntimeError):  # too late once something has run in parallel; we do not use it
            torch.set_num_interop_threads(1)
