"""``/openapi.json``, and ``/docs`` from files that are here: it works where there is no internet."""

from __future__ import annotations

import asyncio
import mimetypes
from functools import cache
from importlib.resources import files

import orjson
from fastapi.openapi.docs import get_swagger_ui_html

from service.errors import NotFound
from service.http.endpoint import Reply, Request
from service.management.documents import Document
from service.management.openapi import build_openapi
from service.memo import Memo

ASSETS = "/docs/assets"
REVALIDATED, KEPT = "no-cache", "max-age=3600"
"""The description changes with the models, the files with a release only."""

_descriptions: Memo[bytes, Document] = Memo(4)


async def openapi(request: Request) -> Reply:
    body = orjson.dumps(build_openapi(request.runtime.models))
    if body not in _descriptions:
        _descriptions.keep(body, Document(body, "application/json", REVALIDATED))
    return await _descriptions[body].reply(request)


async def docs(request: Request) -> Reply:
    return await _page().reply(request)


async def asset(request: Request) -> Reply:
    """A file of Swagger UI, as the package fastapi-offline carries it."""
    document = await asyncio.to_thread(_asset, request.path_parameter("name") or "")
    return await document.reply(request)


@cache
def _page() -> Document:
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Cached prediction service",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
    )
    return Document(bytes(page.body), "text/html; charset=utf-8", REVALIDATED)


@cache
def _asset(name: str) -> Document:
    for file in (files("fastapi_offline") / "static").iterdir():
        if file.name == name:
            return Document(file.read_bytes(), mimetypes.guess_type(name)[0] or "application/octet-stream", KEPT)
    raise NotFound
