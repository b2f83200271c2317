"""Every setting, with its unit and bounds. The environment variables PREDICT_* are read once, at the start.

``python -m service`` also takes each setting as a flag, which overrides the variable.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_origin

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, CliApp, PydanticBaseSettingsSource, SettingsConfigDict

from service.errors import ConfigurationError
from service.logs import set_up_logging

logger = logging.getLogger(__name__)

PREFIX = "PREDICT_"

PUBLIC_SECRET = "cached-prediction-service"

_SERVICE_LINK = re.compile(
    rf"""{PREFIX}(\w+_)?(
        SERVICE_(HOST|PORT(_\w+)?)=.*
        | PORT=(tcp|udp|sctp)://.*
        | PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=.*
    )""",
    re.VERBOSE | re.DOTALL,
)
"""Variables that Kubernetes sets in every container when there is a Service called predict, or predict-…"""

SECRETS = ("cache_secret", "admin_token")
"""Settings whose values no message shows."""


class Settings(BaseSettings):
    """Answers predictions over HTTP and computes none of them twice. Each setting is also an environment variable."""

    # A field's description is its documentation. docs/operations.md repeats it, and a test compares the two.

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="python -m service", cli_kebab_case=True, cli_hide_none_type=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=256, description="Processes that serve; they share one Redis.")
    redis_url: str = Field(
        "", description="`redis://…`, `rediss://…` or `unix://…`; `embedded` starts a private one; empty: no Redis."
    )
    models_dir: Path = Field(Path("models"), description="Directory whose sub-directories are the models to serve.")
    require_models: Literal["any", "all"] = Field(
        "any",
        description="Which models have to load for the service to start; with `any`, one that fails leaves the others "
        "served, and `/models` says why.",
    )
    default_model: str = Field(
        "", description="Model for features when none is named; empty: `iris` when present, else the only one for them."
    )
    default_image_model: str = Field(
        "",
        description="Model for images when none is named; empty: `imagenet` or `digits` when present, else the only "
        "one for them.",
    )

    trusted_types: str = Field(
        "",
        description="Types that `.skops` files may hold, with commas between them, beside scikit-learn's and NumPy's "
        "that skops knows.",
    )

    ttl_seconds: float = Field(300, gt=0, le=4_000_000, description="Lifetime of a cached answer, in seconds.")
    l1_max_bytes: int = Field(64 * 2**20, ge=0, description="Bound of each worker's own cache, in bytes; 0: off.")
    l1_max_entries: int = Field(100_000, ge=1, description="Bound of each worker's own cache, in entries.")
    l1_max_seconds: float = Field(
        30, gt=0, description="Longest stay of a shared answer in a worker's own cache, in seconds."
    )
    key_prefix: str = Field(
        "p1",
        pattern="^[A-Za-z0-9_.:-]{1,64}$",
        description="First part of every key and channel in Redis; services with different ones share a Redis without "
        "meeting.",
    )
    cache_secret: SecretStr = Field(
        SecretStr(PUBLIC_SECRET),
        description="Key of the checksum on every Redis value; set one of your own where others can write to Redis.",
    )
    cache_control: Literal["public", "private"] = Field(
        "public", description="Whether shared HTTP caches may keep answers (`public`), or only a client's own."
    )
    client_directives: Literal["obey", "ignore"] = Field(
        "obey",
        description="Whether a request's `Cache-Control` is obeyed; `ignore`: only `only-if-cached` is, so nobody can "
        "have a stored answer computed again.",
    )
    lease: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Compute each answer once in the whole cluster; `auto`: where the model costs more than a lease.",
    )

    audit_share: float = Field(
        0.001,
        ge=0,
        le=1,
        description="Share of the hits that are computed again in the background and compared, as far as 1 % of the "
        "time, or this share of it if larger, allows; 0: off, 1: every hit.",
    )

    hit_path: bool = Field(
        True, description="Answer hits of a worker's own cache below ASGI, with bytes that are ready."
    )

    max_batch_size: int = Field(
        64,
        ge=1,
        le=4096,
        description="Most inputs in one call of a model; a small forest takes up to 256 rows of a batch request.",
    )
    max_queue_size: int = Field(
        1024, ge=1, description="Most inputs that wait for a model before new ones are refused with 503."
    )
    deadline_seconds: float = Field(30, gt=0, description="Longest that a request waits for its answer, in seconds.")
    compute_deadline_seconds: float = Field(
        60,
        gt=0,
        description="Longest that one call of a model may take, in seconds; after that its worker is replaced.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where image models run; `auto`: a GPU when there is one."
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of image models on a GPU; `float32` is never rounded to TF32."
    )
    share_device: bool = Field(False, description="Let several workers use one GPU, each with its own models.")
    threads: int = Field(
        0, ge=0, description="Most threads that one worker computes images with; 0: the CPUs shared among the workers."
    )

    max_batch_rows: int = Field(
        10_000, ge=1, le=100_000, description="Most rows of one batch, in `/predict_batch` and under `/v2`."
    )
    max_body_bytes: int = Field(
        10 * 2**20, ge=1024, description="Largest request body, in bytes; a batch may have 32 MiB."
    )
    max_image_pixels: int = Field(
        50_000_000,
        ge=1,
        description="Most pixels of an image file; each takes up to 20 bytes while it is decoded, by up to 4 threads.",
    )
    max_bodies_bytes: int = Field(
        128 * 2**20,
        ge=32 * 2**20,
        description="Bound of all request bodies that one worker holds at a time, in bytes; beyond it 503.",
    )
    max_url_bytes: int = Field(64 * 2**10, ge=256, description="Longest request target, in bytes.")
    max_header_bytes: int = Field(32 * 2**10, ge=256, description="Largest request header section, in bytes.")
    header_timeout_seconds: float = Field(5, gt=0, description="Longest time for a request's headers, in seconds.")
    body_timeout_seconds: float = Field(
        8, gt=0, description="Longest pause in a body, and longest that it may stay below 64 KiB/s, in seconds."
    )
    write_timeout_seconds: float = Field(
        8, gt=0, description="Longest that a client may leave an answer unread before it is cut off, in seconds."
    )
    keep_alive_seconds: float = Field(65, gt=0, description="How long an idle connection is kept open, in seconds.")
    drain_seconds: float = Field(
        1,
        ge=0,
        description="How long to serve, not ready, after SIGTERM, so that load balancers notice, in seconds.",
    )
    grace_seconds: float = Field(10, gt=0, description="How long requests may take after the drain, in seconds.")

    server_timing: bool = Field(True, description="Send `Server-Timing` on computed answers.")
    cors_origins: str = Field(
        "",
        pattern=r"^(\*|https?://[^\s,/]+( *, *https?://[^\s,/]+)*)?$",
        description="Origins whose pages may ask from a browser, separated by commas, or `*`; empty: none. With any, "
        "every request passes through the middleware for it, and no hit is answered below ASGI.",
    )
    client_connections: int = Field(0, ge=0, description="Most connections of one client address to a worker; 0: any.")
    client_requests_per_second: float = Field(
        0, ge=0, description="Most predictions a second of a client address from a worker; 0: any. No hit path then."
    )
    tenant_header: str = Field(
        "",
        pattern=r"^[A-Za-z0-9-]*$",
        description="Header in which your proxy names the tenant; each has answers of its own, `private` and without "
        "the hit path. Empty: no tenants.",
    )
    admin_token: SecretStr | None = Field(None, description="Bearer token for `/admin`; none: `/admin` does not exist.")
    access_log_share: float = Field(
        0, ge=0, le=1, description="Share of the requests that have a line in the log. Turns the hit path off."
    )
    access_log_slow_seconds: float = Field(
        0, ge=0, description="Requests that take longer have a line in the log in any case, in seconds; 0: none."
    )
    traces: bool = Field(False, description="Send spans to `OTEL_EXPORTER_OTLP_ENDPOINT`. Turns the hit path off.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _in_any_case(cls, value: Any, info: ValidationInfo) -> Any:
        """``INFO`` is ``info``, in every setting that is a choice of words."""
        is_choice = info.field_name and get_origin(cls.model_fields[info.field_name].annotation) is Literal
        return value.lower() if is_choice and isinstance(value, str) else value

    @field_validator(*SECRETS)
    @classmethod
    def _is_text(cls, secret: SecretStr | None) -> SecretStr | None:
        try:
            (secret or SecretStr("")).get_secret_value().encode()
        except UnicodeEncodeError:
            raise ValueError("a secret is text in UTF-8") from None
        return secret

    @field_validator("cache_secret")
    @classmethod
    def _is_a_secret(cls, secret: SecretStr) -> SecretStr:
        if not secret.get_secret_value().strip():
            raise ValueError("an empty secret protects nothing; unset it, or set one that nobody else knows")
        return secret

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **others: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the given values. ``load_settings`` reads the environment itself, and refuses unknown names."""
        return (init_settings,)

    @property
    def has_hit_path(self) -> bool:
        """Whether hits may be answered below ASGI, where no request is logged, limited or known by its tenant."""
        observed = self.access_log_share or self.client_requests_per_second or self.traces or self.tenant_header
        return self.hit_path and not observed

    @property
    def hit_path_bytes(self) -> int:
        """The part of L1's bytes that the hit path may take."""
        return self.l1_max_bytes // 4 if self.has_hit_path else 0


def load_settings(environ: Mapping[str, str] | None = None, *, arguments: Sequence[str] | None = None) -> Settings:
    """The settings of this process; raises ConfigurationError, which names the variable and its valid values.

    ``arguments``: the command line of ``python -m service``. An unknown flag, or ``--help``, ends the process.
    """
    values = _values(os.environ if environ is None else environ)
    try:
        return Settings(**values) if arguments is None else CliApp.run(Settings, list(arguments), **values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        shown = "…" if name in SECRETS else repr(first["input"])
        raise ConfigurationError(f"{PREFIX}{name.upper()}={shown}: {first['msg']}.") from None


def names(text: str) -> tuple[str, ...]:
    """Of a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def service_links(environ: Mapping[str, str] | None = None) -> list[str]:
    """The variables that Kubernetes has set for a Service called predict, or predict-…; they are no settings."""
    given = os.environ if environ is None else environ
    return [name for name, value in given.items() if _SERVICE_LINK.fullmatch(f"{name}={value}")]


def settings_of_process(arguments: Sequence[str] | None = None) -> Settings:
    """``load_settings``, and logging set up as they say."""
    settings = load_settings(arguments=arguments)
    set_up_logging(settings.log_level)
    if links := service_links():
        logger.warning(
            "Kubernetes has set these variables for a Service; they are no settings.", extra={"names": links}
        )
    return settings


def _values(environ: Mapping[str, str]) -> dict[str, Any]:
    """Name of the field -> value; raises ConfigurationError for an unknown name with our prefix."""
    links = service_links(environ)
    given = {name.upper(): name for name in environ if name.upper().startswith(PREFIX) and name not in links}
    names = {PREFIX + name.upper() for name in Settings.model_fields}
    for upper, name in given.items():
        if upper not in names:
            near = difflib.get_close_matches(upper, names, n=1)
            hint = f"Did you mean {near[0]}?" if near else "docs/operations.md lists all of them."
            raise ConfigurationError(f"Unknown setting {name}. {hint}")
    return {upper.removeprefix(PREFIX).lower(): environ[name] for upper, name in given.items()}
