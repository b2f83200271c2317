"""``/openapi.json`` and ``/docs``. All files of the page are served from here, so it needs no internet."""

from __future__ import annotations

import asyncio
from functools import cache, lru_cache
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

from service.http.operations import CurrentRequest, Operation
from service.management.documents import KEPT, REVALIDATED, Document, Folder

ASSETS = "/docs/assets"

router = APIRouter(route_class=Operation, tags=["documentation"])
_assets = Folder("fastapi_offline", "static", KEPT)


@router.get("/openapi.json", summary="This description", response_model=dict[str, Any])
async def openapi(request: Request, current: CurrentRequest) -> Response:
    body = await asyncio.to_thread(lambda: orjson.dumps(request.app.openapi()))
    return await _description(body).response(current)


@router.get("/docs", summary="This description as a page", response_class=HTMLResponse)
async def docs(current: CurrentRequest) -> Response:
    return await _page().response(current)


@router.get(f"{ASSETS}/{{name}}", include_in_schema=False)
async def asset(name: str, current: CurrentRequest) -> Response:
    """A file of Swagger UI, as the package fastapi-offline carries it."""
    return await _assets.response(name, current)


@lru_cache(4)
def _description(body: bytes) -> Document:
    return Document(body, "application/json", REVALIDATED)


@cache
def _page() -> Document:
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Cached prediction service",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
        swagger_ui_parameters={"supportedSubmitMethods": ["get", "post", "delete", "query"]},
    )
    return Document(bytes(page.body), "text/html; charset=utf-8", REVALIDATED)
