"""``/``: a page to try the service on, from the static files in page/."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import Response

from service.http.operations import CurrentRequest, Operation
from service.management.documents import REVALIDATED, Document, Folder

POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
"""All that the page needs is served from here, and nothing in it is inline."""

router = APIRouter(route_class=Operation, include_in_schema=False)
_files = Folder("service.management", "page", REVALIDATED)


@router.get("/")
async def home(current: CurrentRequest) -> Response:
    return _guarded(await (await _file("index.html")).response(current))


@router.get("/page/{name}")
async def file(name: str, current: CurrentRequest) -> Response:
    return _guarded(await (await _file(name)).response(current))


async def _file(name: str) -> Document:
    return await asyncio.to_thread(_files.document, name)


def _guarded(response: Response) -> Response:
    response.headers["content-security-policy"] = POLICY
    response.headers["x-content-type-options"] = "nosniff"
    return response
