"""Who takes part, and how each wants to be asked."""

from __future__ import annotations

from typing import Any

from benchmarks.client import get
from benchmarks.inputs import IRIS
from benchmarks.ours import COMPUTED
from benchmarks.peers import nginx
from benchmarks.peers.contestant import Contestant, Row, ours, script
from benchmarks.wrk import Shape

QUERY = Shape("/predict?" + "&".join(f"{name}=${number}" for number, name in enumerate(IRIS, 1)))
FEATURES = '{"features": [$1, $2, $3, $4]}'
TENSOR = '{"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP64", "data": [$1, $2, $3, $4]}]}'
INFER = Shape("/v2/models/iris/infer", TENSOR)
NO_STORE = ("Cache-Control: no-store",)

COUNTED = (get("/computations"), r"^(\d+)$")
OUR_COUNTER = (get("/metrics"), rf"^{COMPUTED}(?:{{[^}}]*}})? (\S+)")

LIMIT, BEST_SERVER = "nginx", "mosec"
"""The rows that every warm and every cold row is compared with."""


def probabilities(body: Any) -> Any:
    return body["probabilities"]


def first_tensor(body: Any) -> Any:
    return body["outputs"][0]["data"]


def _warm(name: str, title: str) -> tuple[Row, ...]:
    return (Row(name, title, "warm", "nothing"),)


def _cold(name: str, title: str, beside: str = "") -> tuple[Row, ...]:
    return (Row(name, title, "cold", "features", beside=beside),)


def _ours_cold(name: str, title: str, *, redis: bool, headers: tuple[str, ...] = (), **settings: object) -> Contestant:
    row = Row(name, f"**ours, {title}**", "cold", "features", headers)
    return Contestant(QUERY, (row,), ours(redis=redis, settings=settings), probabilities, OUR_COUNTER)


def _caching(name: str, title: str, script_name: str, environment: dict[str, str] | None = None) -> Contestant:
    rows = _warm(name, title)
    return Contestant(
        QUERY, rows, script, probabilities, COUNTED, script_name, redis=True, environment=environment or {}
    )


OURS = (
    Contestant(
        QUERY,
        (
            Row("ours-l1", "**ours, hit in memory**", "warm", "nothing"),
            Row("ours-id", "**ours, hit in memory, X-Request-ID never the same**", "warm", "request-id"),
        ),
        ours(redis=True),
        probabilities,
        OUR_COUNTER,
    ),
    Contestant(
        QUERY,
        _warm("ours-l2", "**ours, hit in Redis** (memory cache off)"),
        ours(redis=True, settings={"l1_max_bytes": 0}),
        probabilities,
        OUR_COUNTER,
    ),
    Contestant(
        INFER, _warm("ours-v2", "**ours, hit in memory by `/v2`**"), ours(redis=True), first_tensor, OUR_COUNTER
    ),
    Contestant(
        INFER,
        (Row("ours-v2-computed", "**ours, every input computed by `/v2`**", "cold", "features", NO_STORE),),
        ours(redis=True),
        first_tensor,
        OUR_COUNTER,
    ),
    _ours_cold("ours-computed", "every input computed (`no-store`)", redis=True, headers=NO_STORE),
    _ours_cold("ours-computed-2", "every input computed, two workers", redis=True, headers=NO_STORE, workers=2),
    _ours_cold("ours-off", "unique inputs, both caches off", redis=False, l1_max_bytes=0),
    _ours_cold("ours-unique-l1", "unique inputs, memory cache alone", redis=False),
    _ours_cold("ours-unique-redis", "unique inputs, asked for and stored in Redis one by one", redis=True),
)

WARM_PEERS = (
    Contestant(QUERY, _warm("nginx", "nginx `return 200`, fixed bytes"), nginx.fixed),
    Contestant(
        QUERY, _warm("nginx-cache", "nginx `proxy_cache`"), nginx.proxy_cache, probabilities, COUNTED, script="forest"
    ),
    Contestant(
        INFER,
        (Row("triton-cache", "Triton, `local` response cache", "warm", "nothing", beside="ours-v2"),),
        script,
        first_tensor,
        (get("/v2/models/iris/stats"), r'"execution_count":(\d+)'),
        "triton",
    ),
    Contestant(QUERY, _warm("uvicorn", "uvicorn, bare ASGI, fixed bytes"), script, script="uvicorn"),
    Contestant(QUERY, _warm("fastapi", "FastAPI, four float parameters, no work"), script, script="fastapi"),
    _caching("cashews-client", "cashews, client-side cache", "cashews", {"CLIENT_SIDE": "1"}),
    _caching("cashews", "cashews on Redis", "cashews"),
    _caching("async-redis", "async redis-py by hand", "async_redis"),
    _caching("fastapi-cache2", "fastapi-cache2 on Redis", "fastapi_cache2"),
    _caching("fastapi-redis-sdk", "fastapi-redis-sdk", "fastapi_redis_sdk"),
    _caching("textbook", "the textbook version (sync redis-py, `def` endpoint)", "textbook"),
)

COLD_PEERS = (
    Contestant(Shape("/inference", FEATURES), _cold("mosec", "mosec"), script, probabilities, script="mosec"),
    Contestant(Shape("/predict", FEATURES), _cold("litserve", "LitServe"), script, probabilities, script="litserve"),
    Contestant(
        Shape("/predict", '{"rows": [[$1, $2, $3, $4]]}'),
        _cold("bentoml", "BentoML"),
        script,
        lambda body: body[0]["probabilities"],
        script="bentoml",
    ),
    Contestant(INFER, _cold("mlserver", "MLServer", "ours-v2-computed"), script, first_tensor, script="mlserver"),
    Contestant(INFER, _cold("triton", "Triton (pytriton)", "ours-v2-computed"), script, first_tensor, script="triton"),
    Contestant(QUERY, _cold("forest", "FastAPI, `predict_proba` per request"), script, probabilities, script="forest"),
)

ROSTER = (WARM_PEERS[0], *OURS, *WARM_PEERS[1:], *COLD_PEERS)
