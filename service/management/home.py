"""``/``: a page to try the service on, from the static files in page/."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from service.http.operations import CurrentRequest, Operation
from service.management.documents import REVALIDATED, Folder

POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
"""All that the page needs is served from here, and nothing in it is inline."""

router = APIRouter(route_class=Operation, include_in_schema=False)
_files = Folder(
    "service.management", "page", REVALIDATED | {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
)


@router.get("/")
async def home(current: CurrentRequest) -> Response:
    return await _files.response("index.html", current)


@router.get("/page/{name}")
async def file(name: str, current: CurrentRequest) -> Response:
    return await _files.response(name, current)
