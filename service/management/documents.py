"""Documents that seldom change: each has an entity tag and ``Cache-Control``, and is compressed where asked."""

from __future__ import annotations

import asyncio
import mimetypes
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files

from fastapi.responses import Response

from service.errors import NotFound
from service.http.coding import encode, negotiate
from service.http.directives import matches
from service.http.endpoint import Request

BEST = 9
"""The slowest level of compression, since each document is compressed once."""

Headers = Mapping[str, str]
REVALIDATED, KEPT = {"cache-control": "no-cache"}, {"cache-control": "max-age=3600"}
"""REVALIDATED is for what changes with the models or a release: clients ask each time, and mostly get 304."""


class Document:
    """A body of one media type. Images are compressed already, so they are sent as they are."""

    def __init__(self, body: bytes, media_type: str, headers: Headers) -> None:
        self._body, self._media_type, self._headers = body, media_type, headers
        self._digest = urlsafe_b64encode(sha256(body).digest()[:16]).rstrip(b"=").decode()
        self._compresses = not media_type.startswith("image/")
        self._encoded: dict[str | None, bytes] = {None: body}

    async def response(self, request: Request) -> Response:
        """The document in a coding that the client accepts, or 304 if the client has it in this coding."""
        coding = negotiate(request.header(b"accept-encoding")) if self._compresses else None
        tag = f'"{self._digest}{"" if coding is None else f"-{coding}"}"'  # a strong one, so each coding has its own
        headers = {"etag": tag, "vary": "accept-encoding", **self._headers}
        condition = request.header(b"if-none-match")
        if condition is not None and (condition == b"*" or matches(condition, tag.encode())):
            return Response(status_code=304, headers=headers)
        if coding is not None:
            headers["content-encoding"] = coding
        return Response(await self._in(coding), media_type=self._media_type, headers=headers)

    async def _in(self, coding: str | None) -> bytes:
        if coding is not None and coding not in self._encoded:
            # Two requests may do this at the same time. Both make the same bytes.
            self._encoded[coding] = await asyncio.to_thread(encode, self._body, coding, BEST)
        return self._encoded[coding]


class Folder:
    """The files of a folder in a package, each read once."""

    def __init__(self, package: str, folder: str, headers: Headers) -> None:
        self._folder = files(package) / folder
        self._headers = headers
        self._documents: dict[str, Document] = {}

    async def response(self, name: str, request: Request) -> Response:
        """Raises NotFound."""
        return await (await asyncio.to_thread(self._document, name)).response(request)

    def _document(self, name: str) -> Document:
        """``name`` is only compared with the folder's own names, so none leads out of it."""
        if name not in self._documents:
            found = [file for file in self._folder.iterdir() if file.name == name and file.is_file()]
            if not found:
                raise NotFound
            media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
            self._documents[name] = Document(found[0].read_bytes(), media_type, self._headers)
        return self._documents[name]
