"""``multipart/form-data`` (RFC 7578): what browsers' ``FormData``, ``curl -F`` and their like send."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from service.config import names
from service.errors import InvalidInput, MalformedRequest, UnsupportedContent

FORM = "multipart/form-data"
FILE = "application/octet-stream"
"""The media type that a predictor is told for each file of a form. The content decides, not what the form says."""

MAX_FIELDS = 100
_BOUNDARY = re.compile(rb'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.I)
_NAME = re.compile(rb'[;\s]name="([^"\r\n]*)"|[;\s]name=([^\s;"]+)', re.I)
_FILE_NAME = re.compile(rb'[;\s]filename\*?="?([^"\r\n;]*)', re.I)


def check_origin(header: Callable[[bytes], bytes | None], cors_origins: str) -> None:
    """Raises UnsupportedContent for a form that a page of another origin sends. Browsers do not ask this service
    before they send a form, so any page could send one."""
    origin = header(b"origin")
    if origin is None or header(b"sec-fetch-site") in (b"same-origin", b"none"):
        return
    name, own = origin.decode("latin-1").lower(), (header(b"host") or b"").decode("latin-1").lower()
    allowed = names(cors_origins)
    if name.partition("://")[2] != own and name not in allowed and "*" not in allowed:
        raise UnsupportedContent(
            "A form from a page of another origin is refused; send the image itself, as image/png."
        )


def read_question(params: dict[str, Any], body: bytes, content_type: bytes) -> tuple[dict[str, Any], bytes, str | None]:
    """The parameters, of a query string and of the form's fields; its one file, if any, and that file's type."""
    fields, files = _read_form(body, content_type, most=MAX_FIELDS)
    for name in params.keys() & fields.keys():
        raise InvalidInput(f"Parameter {name!r:.80} is repeated.", parameter=name)
    if len(files) > 1:
        raise InvalidInput("The form has several files: /predict_batch reads them.", parameter="image")
    return params | fields, files[0] if files else b"", FILE if files else None


def read_files(body: bytes, content_type: bytes, most: int) -> tuple[dict[str, Any], list[bytes]]:
    """The fields and the files of a batch."""
    fields, files = _read_form(body, content_type, most + MAX_FIELDS)
    if not 0 < len(files) <= most:
        raise InvalidInput(f"A form for a batch has 1 to {most} files.", parameter="inputs")
    return dict(fields), files


def _read_form(body: bytes, content_type: bytes, most: int) -> tuple[dict[str, str], list[bytes]]:
    """The fields and the files of a form of at most so many parts; raises MalformedRequest or InvalidInput."""
    fields: dict[str, str] = {}
    files: list[bytes] = []
    for head, content in _parts(body, content_type, most):
        name = _NAME.search(head)
        if name is None:
            raise MalformedRequest("A part of the form has no name.")
        file = _FILE_NAME.search(head)
        if file is not None:
            if file[1] or content:  # if there is neither, the user has chosen no file
                files.append(content)
            continue
        try:
            key, value = (name[1] or name[2] or b"").decode(), content.decode()
        except UnicodeDecodeError:
            raise MalformedRequest("A field of the form is not UTF-8.") from None
        if key in fields:
            raise InvalidInput(f"Parameter {key!r:.80} is repeated.", parameter=key)
        fields[key] = value
    return fields, files


def _parts(body: bytes, content_type: bytes, most: int) -> Iterator[tuple[bytes, bytes]]:
    """The head and the content of each part; raises MalformedRequest."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise MalformedRequest("The form's Content-Type has no boundary.")
    boundary = b"\r\n--" + (found[1] or found[2])
    at = -len(b"\r\n") if body.startswith(boundary[2:]) else body.find(boundary)
    for _ in range(most):
        start = at + len(boundary)
        if at == -1 or body.startswith(b"--", start):
            break
        blank, end = body.find(b"\r\n\r\n", start), body.find(boundary, start)
        if not 0 <= blank < end:
            break
        yield body[start:blank], body[blank + 4 : end]
        at = end
    if at == -1 or not body.startswith(b"--", at + len(boundary)):
        raise MalformedRequest("The form is not complete, or has too many parts.")
