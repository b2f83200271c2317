"""``/admin``: its routes exist only if the operator has set a token, and answer only requests that carry it."""

from __future__ import annotations

import logging
from hmac import compare_digest
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from pydantic import ValidationError

from service.cache.entry import Entry
from service.config import Settings
from service.errors import InvalidInput, NotFound, StoreFailed, StoreRefused, StoreUnavailable, Unauthorized
from service.http import predict
from service.http.endpoint import Request, load_object
from service.http.operations import CurrentRequest, CurrentRuntime, Operation
from service.http.schemas import problems
from service.management.schemas import CachedEntry, CacheStats, KeyOfQuestion, Purged, PurgeRequest

logger = logging.getLogger(__name__)

PREFIX = "/admin"
MAX_ADMIN_BYTES = 64 * 2**10


def token(settings: Settings) -> bytes:
    """The operator's token. It is empty if none is set, and then /admin does not exist."""
    return b"" if settings.admin_token is None else settings.admin_token.get_secret_value().encode()


def check_token(request: Request) -> None:
    """Raises NotFound if no token is set, as for any unknown path, and Unauthorized for a missing or wrong token.

    Raises TooManyRequests for an address that has sent too many wrong tokens. It then cannot use the right one either,
    or it would see which of its guesses is right.
    """
    expected = token(request.runtime.settings)
    if not expected:
        raise NotFound
    authorization = request.header(b"authorization")
    if authorization is None:
        raise Unauthorized
    guesses, client = request.runtime.guesses, request.client or ""
    guesses.check(client)
    scheme, _, given = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not compare_digest(given.strip(), expected):
        guesses.take(client)
        raise Unauthorized


async def is_operator(
    request: CurrentRequest,
    _: Annotated[object, Depends(HTTPBearer(auto_error=False, description="`PREDICT_ADMIN_TOKEN`"))],
) -> None:
    check_token(request)


async def purge_request(request: CurrentRequest) -> PurgeRequest:
    """Read the body here: FastAPI would read a body of any length before it checks the token."""
    document = load_object(await request.content(MAX_ADMIN_BYTES))
    try:
        return PurgeRequest.model_validate(document)
    except ValidationError:
        raise InvalidInput('The body must be {"model": <name>}.', parameter="model") from None


CacheKey = Annotated[
    str,
    Path(
        pattern="^[a-z0-9_.-]{1,64}:[0-9a-f]{12}:[A-Za-z0-9_-]{43}$",
        description="The model's name, its version and 43 characters; /admin/key tells a question's.",
    ),
]
BODY = {"content": {"application/json": {"schema": PurgeRequest.model_json_schema()}}, "required": True}

router = APIRouter(
    prefix=PREFIX,
    route_class=Operation,
    tags=["admin"],
    dependencies=[Depends(is_operator)],
    responses=problems(401, 429),
)


@router.post(
    "/purge",
    summary="Forget every answer of one model",
    responses=problems(400, 404, 413, 415, 422, 503)
    | {202: {"model": Purged, "description": "Some workers have not acknowledged it yet"}},
    openapi_extra={"requestBody": BODY},
)
async def purge(
    asked: Annotated[PurgeRequest, Depends(purge_request)], runtime: CurrentRuntime, response: Response
) -> Purged:
    """Replace the model's generation. This takes the same time for any number of answers.

    The status is 200 if all workers have acknowledged the new generation. It is 202 if some have not answered in time;
    the answer says within how many seconds they will use it.
    """
    model = runtime.model(asked.model)
    l2 = runtime.pipeline.l2
    if l2.state == "off" and runtime.settings.workers > 1:
        raise StoreFailed("Without Redis no worker can tell the others: restart the service instead.")
    try:
        purged = await l2.purge(model.name)
    except StoreRefused as error:
        raise StoreFailed(f"Nothing was purged: {error}.") from None
    except StoreUnavailable as error:
        raise StoreFailed(f"It is not known whether the model was purged: {error}. Ask again.") from None
    logger.info("The answers of a model are purged.", extra={"model": model.name, **purged._asdict()})
    response.status_code = 202 if purged.seconds else 200
    return Purged(
        purged=model.name,
        workers=purged.workers,
        acknowledged=purged.acknowledged,
        complete_within_seconds=round(purged.seconds, 3),
    )


@router.get("/key", summary="The cache key of a question", responses=problems(404, 422))
async def key_of(request: CurrentRequest) -> KeyOfQuestion:
    """It takes the parameters of a prediction. The operations on one answer take this key."""
    asked = predict.parse_get(request)
    return KeyOfQuestion(model=asked.model.name, key=request.runtime.pipeline.key(asked.model, asked.question))


@router.get("/cache/stats", summary="The caches' sizes")
async def cache_stats(runtime: CurrentRuntime) -> CacheStats:
    l1, l2 = runtime.pipeline.l1, runtime.pipeline.l2
    return CacheStats(l1={"entries": len(l1), "bytes": l1.bytes_used}, l2={"state": l2.state})


# The first route that matches answers: literal paths under /cache stand above.
@router.get("/cache/{key}", summary="What the caches have under a key", responses=problems(404, 422, 503))
async def show(key: CacheKey, runtime: CurrentRuntime) -> CachedEntry:
    """Look into L1 first, then into Redis."""
    l1, l2 = runtime.pipeline.l1, runtime.pipeline.l2
    entry = l1.get(key)
    if entry is not None:
        return _described(key, "l1", entry, runtime.clock())
    try:
        entry = await l2.get(key)
    except StoreUnavailable as error:
        raise StoreFailed(f"{error}.") from None
    if entry is None:
        raise NotFound("No cache has this key.")
    return _described(key, "l2", entry, runtime.clock())


@router.delete("/cache/{key}", summary="Forget one answer", status_code=204, responses=problems(422, 503))
async def forget(key: CacheKey, runtime: CurrentRuntime) -> None:
    """Delete it here and in Redis. Other workers keep their copies for `PREDICT_L1_MAX_SECONDS` at most."""
    runtime.pipeline.l1.delete(key)
    try:
        await runtime.pipeline.l2.delete(key)
    except StoreUnavailable as error:
        raise StoreFailed(f"{error}.") from None
    logger.info("An answer is deleted.", extra={"key": key})


def _described(key: str, tier: Literal["l1", "l2"], entry: Entry, now: float) -> CachedEntry:
    return CachedEntry(key=key, tier=tier, ttl=entry.ttl, age=entry.age(now), bytes=len(entry.value))
