"""Image files as strangers send them: honest, damaged, and made to hurt."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import PIL.Image


def encode(picture: PIL.Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def picture(size: tuple[int, int] = (24, 16)) -> PIL.Image.Image:
    """No two of its pixels alike, and yet kind to JPEG."""
    width, height = size
    across, down = PIL.Image.linear_gradient("L").resize(size), PIL.Image.linear_gradient("L").rotate(90).resize(size)
    return PIL.Image.merge("RGB", (across, down, PIL.Image.new("L", (width, height), 77)))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of any depth, colour type and size, even one that ``rows`` do not fill; ``more`` come before the pixels."""
    chunks = [(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)), *more]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def jpeg_of_size(width: int, height: int, **how: Any) -> bytes:
    """A small JPEG whose header claims another size."""
    file = bytearray(encode(picture((64, 64)), "JPEG", **how))
    start = file.index(b"\xff\xc2" if how.get("progressive") else b"\xff\xc0")
    file[start + 5 : start + 9] = struct.pack(">2H", height, width)
    return bytes(file)


def cut_jpeg(size: tuple[int, int], share: float, mode: str = "RGB", **how: Any) -> bytes:
    """A JPEG that says that it is at its end after a share of its first scan."""
    file = encode(picture(size).convert(mode), "JPEG", **how)
    first = file.index(b"\xff\xda") + 14
    end = min(at for at in (file.find(b"\xff" + bytes([marker]), first) for marker in (0xC4, 0xD9, 0xDA)) if at >= 0)
    return file if share == 1 else file[: first + int(share * (end - first))].rstrip(b"\xff") + b"\xff\xd9"


def interlaced_png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """``data``: the rows of all seven passes."""
    file = bytearray(png(width, height, depth, colour, data))
    file[28] = 1
    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    return bytes(file)


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG that repeats its first pass over the pixels."""
    file = encode(picture(), "JPEG", progressive=True)
    first = file.index(b"\xff\xda")
    second = file.index(b"\xff\xda", first + 2)
    return file[:first] + file[first:second] * count + file[second:]


def webp_of_size(width: int, height: int) -> bytes:
    """An extended WebP whose canvas claims another size."""
    file = bytearray(encode(picture().convert("RGBA"), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"))
    assert file[12:16] == b"VP8X"
    file[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(file)


def gif(frames: int) -> bytes:
    """One pixel, many times."""
    head = b"GIF89a" + struct.pack("<2H3B", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * frames + b";"


def animation(kind: str) -> bytes:
    """Two different frames as an APNG or an animated WebP."""
    return encode(picture(), kind, save_all=True, append_images=[PIL.Image.new("RGB", picture().size, "red")])


def bmp(compression: int) -> bytes:
    """With a header that says that its pixels are compressed."""
    file = bytearray(encode(picture().quantize(16), "BMP"))
    file[30:34] = struct.pack("<I", compression)
    return bytes(file)
