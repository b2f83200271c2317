"""The one place that opens, owns and closes every resource of a worker."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from service.audit import Auditor, Countdown
from service.batches import BatchPipeline
from service.cache.lease import Waits
from service.cache.memory import Memo, MemoryCache
from service.cache.redis.l2 import L2, open_redis
from service.config import Settings, names
from service.errors import ConfigurationError, InvalidInput, Overloaded, StoreUnavailable, UnknownModel
from service.inference.artifact import discover
from service.inference.batcher import Batcher
from service.inference.loading import LoadedModel, load_model
from service.inference.manifest import Manifest
from service.inference.predictor import Options
from service.logs import AccessLog, Refusals
from service.lookup import Model
from service.metrics import Metrics
from service.observer import Account, AnswerObserver, Economics
from service.rate_limit import GUESSES_PER_MINUTE, RateLimit

if TYPE_CHECKING:
    from service.traces import Traces

T = TypeVar("T")

logger = logging.getLogger(__name__)

METRICS_SECONDS = 0.5
HOT_SECONDS = 1.0
WATCH_SECONDS = 0.5
MAX_REMEMBERED, MAX_RENDERED = 1024, 4096
"""Of short questions, and of short answers' bodies, so many are remembered."""
LEASE_COST_SECONDS = 0.001
"""A lease costs two round trips to Redis and a little waiting. A model cheaper than this does without."""


class Bodies:
    """The request bodies in one worker: a bound for their bytes, and a thread for work on large ones. ``held``: the
    bytes that have arrived of all bodies whose requests are not answered yet."""

    def __init__(self, max_bytes: int) -> None:
        self.held = 0
        self._max_bytes = max_bytes
        # One thread: two would fight for the interpreter with the loop, and hold the objects of two bodies.
        self._thread = ThreadPoolExecutor(1, "bodies")

    def take(self, size: int) -> None:
        """Take room for so many bytes; raises Overloaded. The caller must release them."""
        if self.held + size > self._max_bytes:
            raise Overloaded("The bodies of other requests use all the memory that there is for bodies.")
        self.held += size

    def release(self, size: int) -> None:
        self.held -= size

    async def in_thread(self, work: Callable[[], T]) -> T:
        """The result of ``work`` on a large body, which so does not stop the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass(eq=False)
class Runtime:
    """What a request can reach.

    ``failed``: why a model is not served. ``draining``: told to stop, and still answering. ``tallies``: functions that
    add to the metrics what was counted elsewhere. ``guesses``: wrong admin tokens. ``parsed``,
    ``rendered``: the short questions, and the bodies of short answers, that came before.
    """

    settings: Settings
    metrics: Metrics
    pipeline: BatchPipeline
    models: dict[str, Model]
    observer: AnswerObserver
    economics: Economics
    bodies: Bodies
    refusals: Refusals = field(default_factory=Refusals)
    draining: bool = False
    failed: dict[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    tallies: list[Callable[[], None]] = field(default_factory=list)
    parsed: Memo[tuple[Any, ...], Any] = field(default_factory=partial(Memo, MAX_REMEMBERED))
    rendered: Memo[tuple[Any, ...], bytes] = field(default_factory=partial(Memo, MAX_RENDERED))
    access_log: AccessLog | None = field(init=False)
    rate_limit: RateLimit | None = field(init=False)
    traces: Traces | None = None
    guesses: RateLimit = field(default_factory=partial(RateLimit, GUESSES_PER_MINUTE / 60, GUESSES_PER_MINUTE))
    _defaults: dict[bool, str | None] = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        share, slow_seconds = settings.access_log_share, settings.access_log_slow_seconds
        self.access_log = AccessLog(share, slow_seconds) if share or slow_seconds else None
        per_second = settings.client_requests_per_second
        self.rate_limit = RateLimit(per_second, per_second) if per_second else None
        self._defaults = {
            False: _default(self.models, False, settings.default_model, "iris"),
            True: _default(self.models, True, settings.default_image_model, "imagenet", "digits"),
        }

    def model(self, name: object, image: bool = False) -> Model:
        """The model of that name, or without a name the default one for the kind of input; raises UnknownModel."""
        if name is None:
            name = self._defaults[image]
            if name is None:
                raise UnknownModel("Name a model: there is no default one for this input. /models lists them.")
        if not isinstance(name, str):
            raise InvalidInput("Parameter model must be a string.", parameter="model")
        model = self.models.get(name)
        if model is None:
            shown = repr(name)[:80]
            if name in self.failed:
                raise UnknownModel(f"The model {shown} could not be loaded; /models says why.", parameter="model")
            raise UnknownModel(f"There is no model {shown}; /models lists those there are.", parameter="model")
        return model

    @property
    def defaults(self) -> dict[bool, Model]:
        """Whether the input is an image -> the model that is asked when none is named, where it is served."""
        return {image: self.models[name] for image, name in self._defaults.items() if name in self.models}

    def update_metrics(self) -> None:
        """Every worker does this regularly, because a scrape of one worker shows all."""
        for tally in self.tallies:
            tally()
        self.economics.update_metrics()
        self.metrics.l1_bytes.set(self.pipeline.l1.bytes_used)
        self.metrics.l1_entries.set(len(self.pipeline.l1))
        self.metrics.workers.set(1)
        if self.pipeline.l2.state != "off":
            self.metrics.l2_up.set(self.pipeline.l2.state == "up")
        for model in self.models.values():
            self.metrics.queue_size.labels(model.name).set(model.batcher.queued)
        self.metrics.flush()


def _default(models: dict[str, Model], image: bool, preferred: str, *usual: str) -> str | None:
    """The operator's choice, else the first usual one that is served, else the only one that takes such input."""
    fitting = [name for name, model in models.items() if (model.manifest.image is not None) == image]
    only = fitting[0] if len(fitting) == 1 else None
    return preferred or next((name for name in usual if name in fitting), only)


@asynccontextmanager
async def open_runtime(settings: Settings, lost: Callable[[str], None] = lambda reason: None) -> AsyncIterator[Runtime]:
    """Open every resource, and close in the opposite order; raises ConfigurationError.

    ``lost`` is called with the reason when a model can compute no more: this process can then answer only hits.
    """
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        stack.callback(metrics.flush)  # runs last, for what is counted while the others close
        loaded, failed = await _load_models(settings)
        l1 = MemoryCache(settings.l1_max_bytes - settings.hit_path_bytes, settings.l1_max_entries)
        l2 = await stack.enter_async_context(
            open_redis(
                settings.redis_url,
                secret=settings.cache_secret.get_secret_value().encode(),
                observer=metrics,
                on_change=l1.clear,
                prefix=settings.key_prefix,
                waits=Waits(settings.compute_deadline_seconds, settings.deadline_seconds),
            )
        )
        auditor = Auditor(Countdown(settings.audit_share), l1, l2, metrics)
        accounts = {model.manifest.name: Account(model.manifest.cost_seconds, l2.state != "off") for model in loaded}
        economics = Economics(accounts, l2, metrics)
        traces = _open_traces(settings, stack)
        observer = AnswerObserver(metrics, auditor, economics, traces.observe if traces is not None else None)
        models = {model.manifest.name: _serve(settings, model, observer, stack, lost) for model in loaded}
        for name in models:
            await l2.register(name)

        pipeline = BatchPipeline(settings, l1, l2, observer)
        runtime = Runtime(settings, metrics, pipeline, models, observer, economics, Bodies(settings.max_bodies_bytes))
        runtime.failed = failed
        runtime.traces = traces
        stack.callback(runtime.refusals.close)
        stack.callback(runtime.bodies.close)
        stack.callback(runtime.update_metrics)  # for what the last requests counted
        stack.push_async_callback(pipeline.aclose)
        watching = _watch_calls(list(models.values()), settings.compute_deadline_seconds, lost)
        for background in (auditor.run(), economics.run(), _keep_metrics(runtime), _keep_hot(l1, l2), watching):
            stack.push_async_callback(_cancel, asyncio.create_task(background))
        yield runtime


def _open_traces(settings: Settings, stack: AsyncExitStack) -> Traces | None:
    if not settings.traces:
        return None
    try:
        from service.traces import open_traces

        return stack.enter_context(open_traces(settings.deadline_seconds))
    except ImportError:
        raise ConfigurationError("PREDICT_TRACES=on needs OpenTelemetry: pip install '.[traces]'.") from None


async def _load_models(settings: Settings) -> tuple[list[LoadedModel], dict[str, str]]:
    """Those that can be served, and why the others cannot; raises ConfigurationError when there are none, or where all
    are required."""
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.workers)
    options = Options(
        device=settings.device,
        threads=threads,
        max_batch_size=settings.max_batch_size,
        precision=settings.precision,
        owns_device=settings.workers == 1 or settings.share_device,
        trusted_types=names(settings.trusted_types),
        max_image_pixels=settings.max_image_pixels,
    )
    loaded, failed = [], {}
    for directory in discover(settings.models_dir):
        try:
            loaded.append(await asyncio.to_thread(load_model, directory, options))
        except ConfigurationError as error:
            if settings.require_models == "all":
                raise
            failed[directory.name] = str(error)
    if not loaded:
        raise ConfigurationError(" ".join(failed.values()))
    for name, reason in failed.items():
        logger.error("A model is not served. %s", reason, extra={"model": name})
    return loaded, failed


def _serve(
    settings: Settings,
    loaded: LoadedModel,
    observer: AnswerObserver,
    stack: AsyncExitStack,
    lost: Callable[[str], None],
) -> Model:
    """The model with its queue, which the stack closes."""
    manifest, predictor = loaded.manifest, loaded.predictor
    observer.metrics.serve(manifest.name)
    batcher = Batcher(
        predictor,
        max_batch_size=manifest.max_batch_size or settings.max_batch_size,
        max_queue_size=settings.max_queue_size,
        lost=partial(lost, f"The device of model {manifest.name} is lost"),
        observe=partial(observer.batch, manifest.name),
        name=manifest.name,
    )
    stack.push_async_callback(batcher.close)
    return Model(manifest.name, manifest, predictor, batcher, _is_leased(settings, manifest))


def _is_leased(settings: Settings, manifest: Manifest) -> bool:
    lease = manifest.lease or settings.lease
    return manifest.cost_seconds > LEASE_COST_SECONDS if lease == "auto" else lease == "always"


async def _keep_metrics(runtime: Runtime) -> None:
    while True:
        runtime.update_metrics()
        await asyncio.sleep(METRICS_SECONDS)


async def _watch_calls(models: list[Model], longest: float, lost: Callable[[str], None]) -> None:
    """Without this, everybody who asks a model whose call never returns would get 504, for ever and unnoticed."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        for model in models:
            if model.batcher.give_up(longest):
                lost(f"A call of model {model.name} takes longer than {longest:g} s (PREDICT_COMPUTE_DEADLINE_SECONDS)")


async def _keep_hot(l1: MemoryCache, l2: L2) -> None:
    """Redis does not see hits in L1, and would evict the hottest answers first. So it is told of them once a second."""
    while True:
        await asyncio.sleep(HOT_SECONDS)
        if asked := l1.take_asked():
            with suppress(StoreUnavailable):
                await l2.touch(asked)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
