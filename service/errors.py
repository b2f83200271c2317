"""Every error this service raises on purpose, with the HTTP status on the class.

ServiceError
  InvalidInput          422   the client's fault; never cached, never retried
    MalformedRequest    400   not HTTP, JSON or a query string as announced
    RequestTimeout      408   the head or the body took too long to arrive
    UriTooLong          414   the request target is longer than the limit
    HeadersTooLarge     431   the header section is longer than the limit
    PayloadTooLarge     413   the body is larger than the limit
    UnsupportedContent  415   a media type that no predictor reads
      UnsupportedCoding 415   a content coding of the body; carries Accept-Encoding
  NotFound              404   no such URL
  MethodNotAllowed      405   the URL has no such method
  PreconditionFailed    412   If-Match does not hold
  NotSupported          501   a method, a transfer coding or a part of the Open Inference Protocol not served here
  VersionNotSupported   505   of HTTP
  Unauthorized          401
  UnknownModel          404
  NotCached             404   a digest-only question whose answer is not cached
    OnlyIfCached        504   Cache-Control: only-if-cached, and nothing cached
  Overloaded            503   queue full, draining, or no memory; carries Retry-After
    DeviceLost          503   the GPU fails until this worker is replaced, which then drains and exits
  DeadlineExceeded      504
  PredictionFailed      500   the predictor raised or broke its contract; details go to the log only
  StoreFailed           503   Redis did not do what an operator asked
StoreUnavailable              internal: ends in pipeline.py; a cache that fails costs time, never an answer
  StoreRefused                Redis was not asked, or answered with an error: it has not carried the command out
NoWaiters                     internal: a computation that was dropped because nobody waited for it any more
ConfigurationError            the start fails with this one sentence
"""

from typing import Any

MAX_SENTENCE = 1000
MAX_NAME = 80
"""Characters of an unknown parameter's name that an error repeats."""
CODINGS = ("gzip", "deflate")
"""The content codings that bodies may have."""


class ServiceError(Exception):
    """An error with an HTTP answer: ``status``, ``headers``, a stable ``type`` slug, a ``title``, the text as detail.

    ``logged``: it also concerns the operator. Then the detail holds nothing that a client has sent.
    """

    logged = False
    status = 500
    type = "internal-error"
    title = "Internal error"
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init_subclass__(cls, **given: object) -> None:
        """What is not given in the brackets behind a class's name is inherited."""
        for name, value in given.items():
            setattr(cls, name, value)

    def __init__(self, detail: str = "", *, parameter: str | None = None) -> None:
        super().__init__(detail or self.title)
        self.parameter = parameter

    def describe(self) -> dict[str, Any]:
        """The members of a problem document (RFC 9457)."""
        document: dict[str, Any] = {"type": self.type, "title": self.title, "status": self.status, "detail": str(self)}
        if self.parameter is not None:
            document["parameter"] = self.parameter[:MAX_NAME]
        return document


class InvalidInput(ServiceError, status=422, type="invalid-input", title="The input is not valid"): ...


class MalformedRequest(InvalidInput, status=400, type="malformed-request", title="The request is malformed"): ...


class RequestTimeout(
    InvalidInput, status=408, type="request-timeout", title="The request took too long to arrive", logged=True
): ...


class UriTooLong(InvalidInput, status=414, type="uri-too-long", title="The request target is too long"): ...


class HeadersTooLarge(
    InvalidInput, status=431, type="headers-too-large", title="The request header section is too large"
): ...


class PayloadTooLarge(InvalidInput, status=413, type="payload-too-large", title="The body is too large"):
    headers = ((b"connection", b"close"),)


class UnsupportedContent(
    InvalidInput, status=415, type="unsupported-content", title="The media type is not supported"
): ...


class UnsupportedCoding(UnsupportedContent, title="The content coding is not supported"):
    headers = ((b"accept-encoding", ", ".join(CODINGS).encode()),)


class NotFound(ServiceError, status=404, type="not-found", title="There is nothing here"): ...


class MethodNotAllowed(ServiceError, status=405, type="method-not-allowed", title="The method is not allowed here"): ...


class PreconditionFailed(ServiceError, status=412, type="precondition-failed", title="If-Match does not hold"): ...


class NotSupported(ServiceError, status=501, type="not-supported", title="This is not supported"): ...


class VersionNotSupported(
    ServiceError, status=505, type="version-not-supported", title="This version of HTTP is not supported"
): ...


class Unauthorized(ServiceError, status=401, type="unauthorized", title="A bearer token is needed", logged=True):
    headers = ((b"www-authenticate", b"Bearer"),)


class UnknownModel(ServiceError, status=404, type="unknown-model", title="No such model"): ...


class NotCached(ServiceError, status=404, type="unknown-input", title="No cached answer for this digest"): ...


class OnlyIfCached(
    NotCached, status=504, type="not-cached", title="No cached answer, and the request forbids computing one"
): ...


class Overloaded(ServiceError, status=503, type="overloaded", title="The service is overloaded", logged=True):
    """``retry_after``: whole seconds after which the queue should have room again."""

    def __init__(self, detail: str = "", *, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        self.headers = ((b"retry-after", b"%d" % retry_after),)


class TooManyRequests(Overloaded, status=429, type="too-many-requests", title="This address asks too often"): ...


class DeviceLost(
    Overloaded, type="device-lost", title="The device that computes has failed; its worker is being replaced"
):
    def __init__(self, detail: str = "") -> None:
        super().__init__(detail, retry_after=5)


class DeadlineExceeded(
    ServiceError, status=504, type="deadline-exceeded", title="The answer was not ready in time", logged=True
): ...


class PredictionFailed(ServiceError, status=500, type="prediction-failed", title="The model failed on this input"): ...


class StoreFailed(
    ServiceError, status=503, type="store-failed", title="Redis did not carry the command out", logged=True
): ...


class NoWaiters(Exception):
    """Nobody waited for a computation any more when its turn came, so it was dropped."""


class StoreUnavailable(Exception):
    """Redis did not answer, or not in time, or the circuit breaker is open."""


class StoreRefused(StoreUnavailable):
    """Redis was not asked, or answered with an error: it has not carried the command out."""


class ConfigurationError(Exception):
    """A setting, file or model that stops the start: one sentence that names it and the remedy.

    A failed start prints it, so it is one short line, whatever a library or a stranger's file has put into it.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(sentence.split())[:MAX_SENTENCE])
