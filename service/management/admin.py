"""``/admin``: there only when the operator configured a token, and then only for who has it."""

from __future__ import annotations

import logging
import re
from hmac import compare_digest

import orjson

from service.errors import InvalidInput, NotFound, StoreFailed, StoreRefused, StoreUnavailable, Unauthorized
from service.http import predict
from service.http.coding import read_content
from service.http.endpoint import NO_STORE, Reply, Request
from service.http.json_body import load_object

logger = logging.getLogger(__name__)

MAX_ADMIN_BYTES = 64 * 2**10
_KEY = re.compile(r"[A-Za-z0-9_-]{43}")


def guard(request: Request) -> None:
    """404 without a configured token, so that /admin cannot be told from nothing; 401 with a wrong one."""
    token = request.runtime.settings.admin_token
    if token is None or not token.get_secret_value():
        raise NotFound
    scheme, _, given = (request.header(b"authorization") or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not compare_digest(given.strip(), token.get_secret_value().encode()):
        raise Unauthorized


async def purge(request: Request) -> Reply:
    """``{"model": name}``: forget every answer of one model, on every worker. O(1): its generation is replaced.

    200 once every worker has acknowledged it; 202 when some have not in time, with when they will have noticed.
    """
    document = load_object(await read_content(request, MAX_ADMIN_BYTES))
    if document.keys() != {"model"}:
        raise InvalidInput('The body must be {"model": <name>}.', parameter="model")
    model = request.runtime.model(document["model"] if document["model"] is not None else "")
    l2 = request.runtime.pipeline.l2
    if l2.state == "off" and request.runtime.settings.workers > 1:
        raise StoreFailed("Without Redis no worker can tell the others: restart the service instead.")
    try:
        purged = await l2.purge(model.name)
    except StoreRefused as error:
        raise StoreFailed(f"Nothing was purged: {error}.") from None
    except StoreUnavailable as error:
        raise StoreFailed(f"It is not known whether the model was purged: {error}. Ask again.") from None
    logger.info("The answers of a model are purged.", extra={"model": model.name, **purged._asdict()})
    document = {
        "purged": model.name,
        "workers": purged.workers,
        "acknowledged": purged.acknowledged,
        "complete_within_seconds": round(purged.seconds, 3),
    }
    return Reply(orjson.dumps(document), 202 if purged.seconds else 200, headers=[NO_STORE])


async def key_of(request: Request) -> Reply:
    """The cache key of a question, asked like a prediction: the name that the two endpoints below take."""
    asked = predict.parse_get(request)
    return Reply(
        orjson.dumps({"model": asked.model.name, "key": request.runtime.pipeline.key(asked.model, asked.question)}),
        headers=[NO_STORE],
    )


async def show(request: Request) -> Reply:
    """What the caches have under a key, L1 before L2."""
    key, pipeline = _key(request), request.runtime.pipeline
    entry, tier = pipeline.l1.get(key), "l1"
    if entry is None:
        try:
            entry, tier = await pipeline.l2.get(key), "l2"
        except StoreUnavailable as error:
            raise StoreFailed(f"{error}.") from None
    if entry is None:
        raise NotFound("No cache has this key.")
    now = request.runtime.clock()
    document = {"key": key, "tier": tier, "ttl": entry.ttl, "age": entry.age(now), "bytes": len(entry.value)}
    return Reply(orjson.dumps(document), headers=[NO_STORE])


async def forget(request: Request) -> Reply:
    """Delete one answer here and in Redis. Other workers' own copies stay for as long as L1 keeps any."""
    key, pipeline = _key(request), request.runtime.pipeline
    pipeline.l1.delete(key)
    try:
        await pipeline.l2.delete(key)
    except StoreUnavailable as error:
        raise StoreFailed(f"{error}.") from None
    logger.info("An answer is deleted.", extra={"key": key})
    return Reply(status=204, content_type=None, headers=[NO_STORE])


def _key(request: Request) -> str:
    key = request.path_parameter("key") or ""
    if not _KEY.fullmatch(key):
        raise InvalidInput(
            "A cache key has 43 characters of base64url; /admin/key tells a question's.", parameter="key"
        )
    return key


async def cache_stats(request: Request) -> Reply:
    pipeline = request.runtime.pipeline
    document = {
        "l1": {"entries": len(pipeline.l1), "bytes": pipeline.l1.bytes_used},
        "l2": {"state": pipeline.l2.state},
    }
    return Reply(orjson.dumps(document), headers=[NO_STORE])
