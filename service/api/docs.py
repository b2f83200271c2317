"""``/openapi.json``, and ``/docs`` from files that are here: it works where there is no internet."""

from __future__ import annotations

from importlib.resources import files

import orjson
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.staticfiles import StaticFiles

from service.api.endpoint import Reply, Request
from service.api.openapi import build_openapi

ASSETS = "/docs/assets"


async def openapi(request: Request) -> Reply:
    return Reply(orjson.dumps(build_openapi(request.runtime.models)))


async def docs(request: Request) -> Reply:
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Cached prediction service",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
    )
    return Reply(bytes(page.body), content_type=b"text/html; charset=utf-8")


def assets() -> StaticFiles:
    """Swagger UI, as the package fastapi-offline carries it."""
    return StaticFiles(directory=str(files("fastapi_offline") / "static"))
