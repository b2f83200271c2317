"""The ResNets that torchvision has, as their state dicts name them: what a network is made of, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from service.errors import ConfigurationError

Shape = tuple[int, ...]


class Architecture(NamedTuple):
    """``depths``: residual blocks in each of the four layers. ``width``: channels of a group in the first of them."""

    depths: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    width: int = 64


ARCHITECTURES = {
    "resnet18": Architecture((2, 2, 2, 2), bottleneck=False),
    "resnet34": Architecture((3, 4, 6, 3), bottleneck=False),
    "resnet50": Architecture((3, 4, 6, 3)),
    "resnet101": Architecture((3, 4, 23, 3)),
    "resnet152": Architecture((3, 8, 36, 3)),
    "resnext50_32x4d": Architecture((3, 4, 6, 3), groups=32, width=4),
    "resnext101_32x8d": Architecture((3, 4, 23, 3), groups=32, width=8),
    "resnext101_64x4d": Architecture((3, 4, 23, 3), groups=64, width=4),
    "wide_resnet50_2": Architecture((3, 4, 6, 3), width=128),
    "wide_resnet101_2": Architecture((3, 4, 23, 3), width=128),
}


@dataclass(frozen=True, slots=True)
class Convolution:
    """With the batch norm behind it. ``name`` and ``norm``: their places in a state dict; padding keeps the size."""

    name: str
    norm: str
    outputs: int
    inputs: int
    kernel: int
    stride: int = 1
    groups: int = 1

    @property
    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Of the arrays that it needs."""
        yield f"{self.name}.weight", (self.outputs, self.inputs // self.groups, self.kernel, self.kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{self.norm}.{part}", (self.outputs,)


@dataclass(frozen=True, slots=True)
class Block:
    """Convolutions in a row, around which a shortcut leads; None is the input itself."""

    row: tuple[Convolution, ...]
    shortcut: Convolution | None


@dataclass(frozen=True, slots=True)
class Network:
    name: str
    first: Convolution
    blocks: tuple[Block, ...]

    @property
    def convolutions(self) -> Iterator[Convolution]:
        yield self.first
        for block in self.blocks:
            yield from block.row
            if block.shortcut is not None:
                yield block.shortcut

    def shapes(self, classes: int) -> dict[str, Shape]:
        """Of all arrays in its state dict but the counters of batches, which only training reads."""
        found = dict(pair for convolution in self.convolutions for pair in convolution.shapes)
        return found | {"fc.weight": (classes, self.blocks[-1].row[-1].outputs), "fc.bias": (classes,)}


def describe(name: str, channels: int) -> Network:
    """The network of that name for images of so many channels; raises ConfigurationError."""
    if name not in ARCHITECTURES:
        raise ConfigurationError(f"Unknown architecture {name!r}; it is one of {', '.join(ARCHITECTURES)}.")
    architecture = ARCHITECTURES[name]
    blocks, inputs = [], 64
    for layer, depth in enumerate(architecture.depths):
        for number in range(depth):
            place, stride = f"layer{layer + 1}.{number}", 2 if layer and not number else 1
            blocks.append(_block(architecture, place, inputs, 64 << layer, stride))
            inputs = blocks[-1].row[-1].outputs
    return Network(name, Convolution("conv1", "bn1", 64, channels, 7, 2), tuple(blocks))


def _block(architecture: Architecture, place: str, inputs: int, planes: int, stride: int) -> Block:
    inner = planes * architecture.width // 64 * architecture.groups
    outputs = 4 * planes if architecture.bottleneck else planes
    row = (
        ((inner, 1, 1, 1), (inner, 3, stride, architecture.groups), (outputs, 1, 1, 1))
        if architecture.bottleneck
        else ((inner, 3, stride, 1), (outputs, 3, 1, 1))
    )
    convolutions, before = [], inputs
    for number, (after, kernel, step, groups) in enumerate(row, 1):
        name, norm = f"{place}.conv{number}", f"{place}.bn{number}"
        convolutions.append(Convolution(name, norm, after, before, kernel, step, groups))
        before = after
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = Convolution(f"{place}.downsample.0", f"{place}.downsample.1", outputs, inputs, 1, stride)
    return Block(tuple(convolutions), shortcut)
