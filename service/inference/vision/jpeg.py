"""JPEG files decoded and resized by the GPU: those that it reads as Pillow does, but for a few levels of a colour."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress

import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from service.errors import ConfigurationError
from service.inference.manifest import Image
from service.inference.vision.cuda import Device, is_out_of_memory
from service.inference.vision.image_header import MAX_PARTS, read_header
from service.inference.vision.images import place

AT_ONCE_PIXELS = 32_000_000
"""Most pixels that are resized in one go; each takes some 30 bytes meanwhile."""

_BASELINE, _START_OF_SCAN, _EXIF_OR_XMP, _ADOBE = 0xC0, 0xDA, 0xE1, 0xEE
_OTHER_FRAMES = frozenset(range(0xC1, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ORIENTATION = 0x0112
_YCBCR = 1


def suits(file: bytes, spec: Image) -> bool:
    """Whether the GPU is to decode this payload: a whole, upright colour JPEG of the plainest kind.

    A file's own bytes alone decide, so that its pixels never depend on its company. Raises InvalidInput.
    """
    if spec.mode != "RGB" or not file.startswith(b"\xff\xd8\xff") or not file.rstrip(b"\0").endswith(b"\xff\xd9"):
        return False
    for marker, data in _segments(file):
        if marker == _START_OF_SCAN:
            header = read_header(file)
            place((header.width, header.height), spec)
            return data[:1] == b"\3"  # all colours in one scan
        if marker in _OTHER_FRAMES or (marker == _BASELINE and not (_is_plain(data) and _may_fill(data, len(file)))):
            return False
        if marker == _EXIF_OR_XMP and _is_turned(data):
            return False
        if marker == _ADOBE and data.startswith(b"Adobe") and data[11:12] != bytes([_YCBCR]):
            return False
    return False


def _segments(file: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and contents of each segment up to the first scan, as far as the file is well-formed."""
    start = 2
    for _ in range(MAX_PARTS):
        if start + 4 > len(file) or file[start] != 0xFF or not 0xC0 <= file[start + 1] <= 0xFE:
            return
        length = int.from_bytes(file[start + 2 : start + 4], "big")
        yield file[start + 1], file[start + 4 : start + 2 + length]
        start += 2 + length


def _is_plain(frame: bytes) -> bool:
    """Eight bits, and three colours not named R, G and B."""
    return len(frame) == 15 and frame[0] == 8 and frame[5] == 3 and frame[6::3] != b"RGB"


def _may_fill(frame: bytes, size: int) -> bool:
    """Whether so many bytes can be this frame's, at two bits a block: nvJPEG may not say what is missing."""
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    factors = [(part >> 4, part & 15) for part in frame[7::3]]
    across, down = 8 * max(1, *(x for x, _ in factors)), 8 * max(1, *(y for _, y in factors))
    blocks = -(-width // across) * -(-height // down) * sum(x * y for x, y in factors)
    return 2 * blocks <= 8 * size


def _is_turned(data: bytes) -> bool:
    """Whether EXIF data, or XMP, may say that the picture is not upright."""
    if not data.startswith(b"Exif\0\0"):
        return b"Orientation" in data
    exif = PIL.Image.Exif()
    with suppress(Exception):
        exif.load(data)
        return bool(exif.get(_ORIENTATION, 1) != 1)
    return True


class JpegDecoder:
    """Decodes with nvJPEG, and resizes as ``images.crop`` does but in float32."""

    def __init__(self, spec: Image, device: Device) -> None:
        """Raises ConfigurationError where there is no nvJPEG."""
        self._spec = spec
        self._device = device
        file = io.BytesIO()
        PIL.Image.new("RGB", (16, 16)).save(file, "JPEG")
        try:
            self._decode_together([file.getvalue()])
        except (ImportError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigurationError(
                f"PREDICT_DECODE=gpu, but this torchvision does not decode on the GPU ({reason}); use pillow."
            ) from None

    def __call__(self, files: Sequence[bytes]) -> list[Tensor | None]:
        """height × width × channels of each file, cut as the network wants it; None for what cannot be decoded here."""
        pictures = self._decode(files)
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, picture in enumerate(pictures):
            if picture is not None:
                by_shape[picture.shape].append(index)
        cut: list[Tensor | None] = [None] * len(files)
        for shape, alike in by_shape.items():
            step = max(1, AT_ONCE_PIXELS // (shape[1] * shape[2]))
            for start in range(0, len(alike), step):
                some = alike[start : start + step]
                together = self._cut(torch.stack([p for index in some if (p := pictures[index]) is not None]))
                for index, picture in zip(some, together, strict=True):
                    cut[index] = picture
        # nvJPEG writes on a stream of its own: its memory must not be free again before this stream has read it.
        self._device.mark().synchronize()
        return cut

    def _decode(self, files: Sequence[bytes]) -> list[Tensor | None]:
        """Together; when that fails, one by one, so that a bad file changes nothing for its neighbours."""
        try:
            return list(self._decode_together(files))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
        return [None] if len(files) == 1 else [self._decode([file])[0] for file in files]

    def _decode_together(self, files: Sequence[bytes]) -> list[Tensor]:
        from torchvision.io import ImageReadMode, decode_jpeg  # here: torchvision says that it is to go one day

        contents = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        pictures: list[Tensor] = decode_jpeg(contents, ImageReadMode.RGB, self._device.name)
        return pictures

    def _cut(self, pictures: Tensor) -> Tensor:
        """images × channels × height × width, all of one size, to images × height × width × channels, resized."""
        height, width = self._spec.size
        (across, down), (left, top) = place((pictures.shape[3], pictures.shape[2]), self._spec)
        if (down, across) != tuple(pictures.shape[2:]):
            resized = interpolate(pictures.float(), (down, across), mode=self._spec.interpolation, antialias=True)
            pictures = resized.round_().clamp_(0, 255).byte()
        return pictures[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)
