"""Documents that stay as they are for a while: with an entity tag, ``Cache-Control``, and compressed for who asks."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64encode
from hashlib import sha256

from service.http.coding import encode, negotiate
from service.http.directives import matches
from service.http.endpoint import Reply, Request

BEST = 9
"""Each document is compressed once."""


class Document:
    """A body of one media type. What already is compressed is sent as it is."""

    def __init__(self, body: bytes, media_type: str, cache_control: str) -> None:
        self._body, self._media_type = body, media_type.encode()
        self._cache_control = (b"cache-control", cache_control.encode())
        self._digest = urlsafe_b64encode(sha256(body).digest()[:16]).rstrip(b"=").decode()
        self._compresses = not media_type.startswith("image/")
        self._encoded: dict[str | None, bytes] = {None: body}

    async def reply(self, request: Request) -> Reply:
        """The document as this client takes it, or 304 when it has it so."""
        coding = negotiate(request.header(b"accept-encoding")) if self._compresses else None
        tag = self._tag(coding)
        headers = [(b"etag", tag), self._cache_control, (b"vary", b"accept-encoding")]
        condition = request.header(b"if-none-match")
        if condition is not None and (condition == b"*" or matches(condition, tag)):
            return Reply(status=304, content_type=None, headers=headers)
        if coding is not None:
            headers.append((b"content-encoding", coding.encode()))
        return Reply(await self._in(coding), content_type=self._media_type, headers=headers)

    def _tag(self, coding: str | None) -> bytes:
        """A strong one, so each coding has its own."""
        return f'"{self._digest}{"" if coding is None else f"-{coding}"}"'.encode()

    async def _in(self, coding: str | None) -> bytes:
        if coding is not None and coding not in self._encoded:
            # Two may do this at once; both make the same bytes.
            self._encoded[coding] = await asyncio.to_thread(encode, self._body, coding, BEST)
        return self._encoded[coding]
