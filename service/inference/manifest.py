"""What ``manifest.json`` says about a model, checked."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

RESERVED_FEATURES = frozenset({"model", "image", "input", "sha256", "top_k"})


class Part(BaseModel):
    """Unknown members are refused: a misspelt one would otherwise be silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Weights(Part):
    """``file``: a plain name beside the manifest, never a path."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, data: bytes, extension: str) -> Self:
        """The name and digest that weights with these bytes get."""
        digest = hashlib.sha256(data).hexdigest()
        return cls(file=f"{digest}.{extension}", sha256=digest)


class Feature(Part):
    """``minimum`` and ``maximum`` are inclusive; None leaves that side open."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.\-]{0,63}$")]
    minimum: FiniteFloat | None = None
    maximum: FiniteFloat | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name in RESERVED_FEATURES:
            raise ValueError(f"a feature may not be called {self.name!r}")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"the minimum of {self.name!r} is above its maximum")
        return self


class Image(Part):
    """Preprocessing of a vision model: resize the shorter side, crop the centre, scale to 0…1, normalise per channel.

    ``size``: height and width that the network is given, in pixels. ``resize``: length of the shorter side before the
    crop; None resizes to ``size`` exactly. ``batched``: whether a CPU gives an image the same answer alone and among
    others, to the last bit; otherwise it computes one image at a time. ``architecture``: a name, where it has one.
    """

    architecture: str = ""
    batched: bool = True
    size: tuple[int, int]
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mode: Literal["L", "RGB"] = "RGB"
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Class(Part):
    """``value``: the estimator's own class value as a string (for images, the index). ``label``: its name."""

    value: str
    label: str


class Example(Part):
    """An input that the model answered when it was made, and that answer: the warm-up checks one against the other."""

    inputs: dict[str, Any]
    golden: list[FiniteFloat]


class Manifest(Part):
    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.\-]{0,63}$")]
    kind: str
    weights: Weights
    parts: tuple[Weights, ...] = ()
    """More files, which the kind knows by their extensions."""
    features: tuple[Feature, ...] = ()
    image: Image | None = None
    classes: Annotated[tuple[Class, ...], Field(min_length=1)]
    cost_seconds: Annotated[float, Field(gt=0)]
    """Seconds that one prediction took alone, measured when the model was made."""
    example: Example
    versions: dict[str, str]
    accuracy: float | None = None
    description: str = ""

    @property
    def files(self) -> tuple[Weights, ...]:
        return (self.weights, *self.parts)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.image is None) != bool(self.features):
            raise ValueError("a model has either features or an image")
        for what, names in (
            ("feature names", [f.name for f in self.features]),
            ("class values", [c.value for c in self.classes]),
            ("class labels", [c.label for c in self.classes]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} are not unique")
        if len(self.example.golden) != len(self.classes):
            raise ValueError(f"the golden answer has {len(self.example.golden)} values for {len(self.classes)} classes")
        return self


def reason(error: ValidationError) -> str:
    """The first thing that is wrong, and where, in a few words."""
    first = error.errors()[0]
    where = "".join(f"{part}: " for part in (".".join(map(str, first["loc"])),) if part)
    return where + first["msg"].removeprefix("Value error, ")
