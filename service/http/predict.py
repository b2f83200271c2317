"""``/predict``: an input in, a rendering out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

from service.cache.keys import of_tenant
from service.errors import InvalidInput, NotCached, PreconditionFailed
from service.http.directives import matches
from service.http.endpoint import FILES_WORTH, Headers, Hot, Reply, Request, load_object
from service.http.multipart import FORM, read_question
from service.http.render import (
    MAX_REMEMBERED_BYTES,
    View,
    cache_control,
    cache_status,
    default_top_k,
    entity_tag,
    rendering,
    response_headers,
    server_timing,
    take_model,
    take_view,
)
from service.inference.manifest import IMAGE_ALIASES, IMAGE_TYPES
from service.inference.predictor import HashedFile, Question
from service.lookup import Answer, CacheDirectives, Model
from service.runtime import Runtime


@dataclass(slots=True, eq=False)
class Parsed:
    """A parsed request."""

    model: Model
    question: Question
    view: View
    _generation: bytes | None = None
    _tag: bytes | None = None

    def tag(self, generation: bytes | None) -> bytes | None:
        """The rendering's entity tag, kept for the next request. None while the model's generation is not known."""
        if generation != self._generation:
            self._generation, self._tag = generation, None
            if generation is not None:
                self._tag = entity_tag(self.model, generation, self.question, self.view.name)
        return self._tag


JSON = "application/json"
MEDIA_TYPES = (JSON, *IMAGE_TYPES, FORM)
IMAGE_PARAMETERS = frozenset({"image", "input", "sha256"})
MAX_PARAMETERS = 1000


def get(request: Request) -> Awaitable[Reply]:
    return _cached_reply(request, parse_get(request))


async def post(request: Request) -> Reply:
    """HTTP caches must not keep the answer to a POST, so it has only Cache-Status (RFC 9110, 9.3.3)."""
    parsed = await _read(request)
    answer = await request.runtime.pipeline.answer(parsed.model, parsed.question, request.directives)
    return _located(_reply(request, answer, parsed, lambda now: [(b"cache-status", cache_status(answer, now))]), parsed)


async def query(request: Request) -> Reply:
    """QUERY (RFC 10008): the body of a POST, safe, idempotent and cacheable like a GET."""
    parsed = await _read(request)
    return _located(await _cached_reply(request, parsed), parsed)


def parse_get(request: Request) -> Parsed:
    """Parse a request with its input in the query string; raises ServiceError."""
    runtime, name, query = request.runtime, request.path_parameter("name"), request.query
    parsed: Parsed | None = runtime.parsed.get((name, query))
    if parsed is None:
        parsed = _understood(runtime, name, dict(parse_query(query)))
        if len(query) <= MAX_REMEMBERED_BYTES:
            runtime.parsed.keep((name, query), parsed)
    return parsed


async def _read(request: Request) -> Parsed:
    """Parse a request with its input in the body."""
    content_type = request.media_type(MEDIA_TYPES + IMAGE_ALIASES)
    runtime, name = request.runtime, request.path_parameter("name")
    params: dict[str, Any] = dict(parse_query(request.query))
    body = await request.content(runtime.settings.max_body_bytes)
    if content_type in IMAGE_TYPES and body is request.sent and (digest := request.scope.get("digest")) is not None:
        body = HashedFile(body)
        body.digest = digest
    is_short = content_type == JSON and len(request.query) + len(body) <= MAX_REMEMBERED_BYTES
    parsed: Parsed | None = runtime.parsed.get((name, request.query, body)) if is_short else None
    if parsed is None:
        given = request.header(b"content-type") or b""
        read = partial(_read_body, runtime, name, params, body, given, content_type)
        parsed = await request.work(read, len(body) * (1 if content_type == JSON else FILES_WORTH))
        if is_short:
            runtime.parsed.keep((name, request.query, body), parsed)
    return parsed


def _read_body(
    runtime: Runtime, path_name: str | None, params: dict[str, Any], body: bytes, given: bytes, content_type: str
) -> Parsed:
    if content_type == FORM:
        return _understood(runtime, path_name, *read_question(params, body, given))
    if content_type == JSON:
        members = load_object(body)
        for name in params:
            if name in members:
                raise InvalidInput(f"Parameter {name!r:.80} is repeated.", parameter=name)
            if name not in ("model", "top_k", "domain"):
                raise InvalidInput(f"Parameter {name!r:.80} belongs into the body.", parameter=name)
        params, body = params | members, b""
    return _understood(runtime, path_name, params, body, content_type)


def parse_query(query: bytes) -> dict[str, str]:
    """An ``application/x-www-form-urlencoded`` query; raises InvalidInput on repeated or nameless parameters."""
    params: dict[str, str] = {}
    if not query:
        return params
    text = query.decode("latin-1")  # a character per byte
    coded = not text.isascii() or "%" in text or "+" in text
    pairs = text.split("&", MAX_PARAMETERS)
    if len(pairs) > MAX_PARAMETERS:
        raise InvalidInput(f"More than {MAX_PARAMETERS} parameters.")
    for pair in pairs:
        name, _, value = pair.partition("=")
        if coded:
            name, value = _decode(name), _decode(value)
        if not name:
            raise InvalidInput("A parameter without a name.")
        if name in params:
            raise InvalidInput(f"Parameter {name!r:.80} is repeated.", parameter=name)
        params[name] = value
    return params


def _decode(text: str) -> str:
    try:
        return unquote_to_bytes(text.replace("+", " ").encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise InvalidInput("A parameter is not UTF-8.") from None


def _understood(
    runtime: Runtime, path_name: str | None, params: dict[str, Any], body: bytes = b"", content_type: str | None = None
) -> Parsed:
    """Take model and rendering out of the parameters. The predictor parses the rest, which is the input."""
    name = take_model(params) if path_name is None else path_name
    model = runtime.model(name, image=content_type not in (None, JSON) or not IMAGE_PARAMETERS.isdisjoint(params))
    view = take_view(params, model)
    return Parsed(model, model.predictor.parse(params, body, content_type), view)


async def _cached_reply(request: Request, parsed: Parsed) -> Reply:
    """The order of decisions (RFC 9110, 13.2.2): If-Match, then If-None-Match, then the answer.

    A tag that matches is 304 without a look-up; with no-cache it is 304 after the computation. ``*`` needs a look-up.
    """
    runtime, model, question = request.runtime, parsed.model, parsed.question
    # Made before the answer: after a purge meanwhile, an old answer must not get the new tag.
    generation = runtime.pipeline.l2.generation(model.name)
    tag = parsed.tag(None if generation is None else of_tenant(generation))
    directives = request.directives
    if_match, condition = request.header(b"if-match"), request.header(b"if-none-match")
    # Our tags are weak, so If-Match with a list never holds.
    if if_match is not None and (if_match != b"*" or await _stored(request, parsed) is None):
        raise PreconditionFailed
    unchanged = None if condition is None else await _unchanged(request, parsed, condition, tag)
    if unchanged is not None and not directives.fresh:
        reply = _not_modified(unchanged, tag)
        if condition != b"*":
            reply.hot = Hot(model.name, runtime.pipeline.key(model, question), None)
        return reply
    answer = await runtime.pipeline.answer(model, question, directives)
    if unchanged is not None:
        return _not_modified(response_headers(answer, runtime.settings, runtime.clock()), tag)
    reply = _reply(request, answer, parsed, partial(response_headers, answer, runtime.settings))
    reply.headers += _tagged(tag)
    if condition is not None:  # which no later request need have
        reply.hot = None
    return reply


async def _unchanged(request: Request, parsed: Parsed, if_none_match: bytes, tag: bytes | None) -> Headers | None:
    """The headers of a 304, or None when the client does not have the answer."""
    settings = request.runtime.settings
    if if_none_match == b"*":
        stored = await _stored(request, parsed)
        return None if stored is None else response_headers(stored, settings, request.runtime.clock())
    if tag is None or not matches(if_none_match, tag):
        return None
    return [(b"cache-status", b"predict; hit; detail=ETAG"), cache_control(settings, parsed.model.ttl(settings))]


async def _stored(request: Request, parsed: Parsed) -> Answer | None:
    try:
        return await request.runtime.pipeline.answer(parsed.model, parsed.question, CacheDirectives(compute=False))
    except NotCached:
        return None


def _not_modified(headers: Headers, tag: bytes | None) -> Reply:
    return Reply(status=304, content_type=None, headers=[*headers, *_tagged(tag)])


def _tagged(tag: bytes | None) -> Headers:
    return [] if tag is None else [(b"etag", b"W/" + tag)]


def _reply(request: Request, answer: Answer, parsed: Parsed, varying: Callable[[float], Headers]) -> Reply:
    """``varying``: the headers of caching, which change with the clock."""
    runtime = request.runtime
    headers = varying(runtime.clock())
    if not answer.hit and runtime.settings.server_timing:
        headers.append(server_timing(answer))
    body = rendering(runtime, answer.entry, parsed.model, parsed.view, lambda: parsed.question)
    reply = Reply(body, headers=headers)
    if answer.source == "l1" and request.content_type != FORM:  # a form's answer depends on where it comes from
        reply.hot = Hot(parsed.model.name, answer.key, answer.entry, varying)
    return reply


def _located(reply: Reply, parsed: Parsed) -> Reply:
    """Add the URL that has the same answer without an upload."""
    if parsed.question.digest is not None:
        location = f"/models/{parsed.model.name}/predict?sha256={parsed.question.digest}"
        if parsed.view.top_k != default_top_k(parsed.model):
            location += f"&top_k={parsed.view.top_k}"
        reply.headers.append((b"content-location", location.encode()))
    return reply
