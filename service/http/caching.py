"""The response headers of HTTP caching: Cache-Status (RFC 9211), Age, Cache-Control, ETag, Server-Timing."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import sha256

from service.config import Settings
from service.http.endpoint import Headers
from service.inference.predictor import Question
from service.lookup import Answer, BatchAnswer, Model


def entity_tag(model: Model, generation: bytes, question: Question, rendering: str) -> bytes:
    """The opaque tag, in quotes. It is made from model, generation, question and rendering, so it needs no look-up."""
    text = b"%s|%s|%s|%s|" % (model.predictor.fingerprint, generation, model.name.encode(), rendering.encode())
    return b'"%s"' % urlsafe_b64encode(sha256(text + question.identity).digest()[:16]).rstrip(b"=")


def cache_status(answer: Answer, now: float) -> bytes:
    """One Cache-Status member: ``hit``, or ``fwd`` with the reason and whether the answer was stored."""
    left = b"; ttl=%d" % max(0, int(answer.entry.left(now)))
    if answer.hit:
        return b"predict; hit%s; detail=%s" % (left, answer.source.upper().encode())
    reason = b"request" if answer.fresh else b"bypass" if answer.l2_down else b"uri-miss"
    kept = b"; collapsed" + left if answer.source == "collapsed" else b"; stored" + left if answer.stored else b""
    return b"predict; fwd=%s%s%s" % (reason, kept, b"; detail=L2-DOWN" if answer.l2_down else b"")


def batch_status(batch: BatchAnswer) -> bytes:
    """The Cache-Status member of a batch, which is a hit when every row is one."""
    size = len(batch.rows)
    how = b"hit" if batch.hits == size else b"fwd=partial"
    return b'predict; %s; detail="rows=%d hits=%d computed=%d"' % (how, size, batch.hits, batch.computed)


def cache_control(settings: Settings, max_age: float) -> tuple[bytes, bytes]:
    whose = "private" if settings.tenant_header else settings.cache_control
    return (b"cache-control", b"%s, max-age=%d" % (whose.encode(), int(max_age)))


def response_headers(answer: Answer, settings: Settings, now: float) -> Headers:
    headers: Headers = [
        (b"cache-status", cache_status(answer, now)),
        cache_control(settings, answer.entry.ttl),
    ]
    if answer.hit:
        headers.append((b"age", b"%d" % min(int(answer.entry.age(now)), int(answer.entry.ttl))))
    return headers


def server_timing(answer: Answer) -> tuple[bytes, bytes]:
    """The milliseconds spent in the caches, in the queue and in the model."""
    times = (answer.cache_seconds * 1e3, answer.queue_seconds * 1e3, answer.model_seconds * 1e3)
    return (b"server-timing", b"cache;dur=%.3f, queue;dur=%.3f, model;dur=%.3f" % times)
