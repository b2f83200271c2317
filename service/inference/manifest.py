"""What ``manifest.json`` says about a model, checked."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveInt,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff")
IMAGE_ALIASES = ("image/jpg", "application/octet-stream")
"""Types that clients announce for images as well. The content decides."""

MAX_EXACT = 2**53
"""The largest integer whose neighbours are float64s, too. A larger one may be rounded."""
DECIMAL = "0123456789.+-eE"
"""Of what float() takes, these characters leave decimals: no spaces, underscores, "nan" or other alphabets' digits."""
MAX_DIGITS = 64
"""The most characters of a number in a text."""

RESERVED_FEATURES = frozenset({"model", "image", "input", "sha256", "domain", "top_k"})


def _is_feature_name(name: str) -> str:
    if name in RESERVED_FEATURES:
        raise ValueError(f"a feature may not be called {name!r}")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ValueError(f"the name {name!r} has control characters")
    return name


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
    """``minimum`` and ``maximum`` are inclusive; None leaves that side open. ``seen``: what the training data had from
    and to, which is shown and not enforced.

    ``values``: those of a category. ``missing``: whether a row may be without this feature. ``dtype``: of the column
    in the DataFrame that the model was fitted on, in pandas' words; ``None``: objects, and a missing one is None.
    """

    name: Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_is_feature_name)]
    type: Literal["number", "integer", "boolean", "category", "text"] = "number"
    minimum: FiniteFloat | None = None
    maximum: FiniteFloat | None = None
    seen: tuple[FiniteFloat, FiniteFloat] | None = None
    values: tuple[StrictInt | StrictStr, ...] = ()
    missing: bool = False
    dtype: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        bounds = [bound for bound in (self.minimum, self.maximum) if bound is not None]
        if bounds != sorted(bounds):
            raise ValueError(f"the minimum of {self.name!r} is above its maximum")
        if bounds and self.type not in ("number", "integer"):
            raise ValueError(f"{self.name!r} is no number, so it has neither minimum nor maximum")
        if bool(self.values) != (self.type == "category"):
            raise ValueError(f"a category, and nothing else, has values: {self.name!r}")
        if len(set(map(str, self.values))) != len(self.values):
            raise ValueError(f"the values of {self.name!r} are not unique")
        return self


class Image(Part):
    """Preprocessing of a vision model: resize the shorter side, crop the centre, scale to 0…1, normalise per channel.

    ``size``: height and width that the network is given, in pixels. ``resize``: length of the shorter side before the
    crop; None resizes to ``size`` exactly. ``batched``: whether a CPU gives an image the same answer alone and among
    others, to the last bit; otherwise it computes one image at a time. ``architecture``: a name, where it has one.
    """

    architecture: str = ""
    batched: bool = True
    size: tuple[PositiveInt, PositiveInt]
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mode: Literal["L", "RGB"] = "RGB"
    mean: tuple[FiniteFloat, ...]
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.mean) == len(self.std) == len(self.mode):
            raise ValueError(f"for {self.mode} images, mean and std need {len(self.mode)} values each")
        if self.resize is not None and self.resize < max(self.size):
            raise ValueError(f"it cannot crop {self.size} out of images resized to {self.resize}")
        return self


class Class(Part):
    """``value``: the estimator's own class value as a string (for images, the index). ``label``: its name."""

    value: str
    label: str


class Output(Part):
    """How the numbers of an answer are read.

    ``probabilities``: one per class; the first of the highest is the prediction. ``class``: its index.
    ``class_and_probabilities``: both, where ``predict`` is more than the highest probability. ``numbers``,
    ``integers``, ``labels`` (0 or 1 for each): what ``predict`` says; ``names``: of several. ``rows_per_call``: how
    many rows each call of the estimator has, always; None: as many as there are, since none depends on the others.
    """

    kind: Literal["probabilities", "class_and_probabilities", "class", "numbers", "integers", "labels"] = (
        "probabilities"
    )
    names: tuple[str, ...] = ()
    rows_per_call: Annotated[int, Field(ge=1)] | None = None

    @property
    def has_classes(self) -> bool:
        return self.kind in ("probabilities", "class_and_probabilities", "class")

    @cached_property
    def probabilities_from(self) -> int | None:
        """Where in an answer the probabilities begin; None for an answer without any."""
        if self.kind == "probabilities":
            return 0
        return 1 if self.kind == "class_and_probabilities" else None


PROBABILITIES = Output()
"""What manifests mean that say nothing of it."""


class Example(Part):
    """An input that the model answered when it was made, and that answer: the warm-up checks one against the other."""

    inputs: dict[str, Any]
    golden: list[FiniteFloat]


ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.\-]{0,63}$")]


class Manifest(Part):
    format: Literal[1] = 1
    name: ModelName
    kind: str
    weights: Weights
    parts: tuple[Weights, ...] = ()
    """More files, which the kind knows by their extensions."""
    features: tuple[Feature, ...] = ()
    rows: Literal["array", "objects", "frame", "texts"] = "array"
    """What a table model is called with: float64s, objects, a DataFrame, or a list of the texts of its one feature."""
    image: Image | None = None
    classes: tuple[Class, ...] = ()
    output: Output = PROBABILITIES
    cost_seconds: Annotated[float, Field(gt=0)]
    """Seconds that one prediction took alone, measured when the model was made."""
    example: Example
    versions: dict[str, str]
    accuracy: float | None = None
    description: str = ""
    ttl_seconds: Annotated[float, Field(gt=0, le=4_000_000)] | None = None
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    lease: Literal["auto", "always", "never"] | None = None
    """The settings that are different for this model."""
    requirements: tuple[str, ...] = ()
    """What must be installed where it is loaded, as in the requirements.txt beside the manifest."""

    @property
    def files(self) -> tuple[Weights, ...]:
        return (self.weights, *self.parts)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.image is None) != bool(self.features):
            raise ValueError("a model has either features or an image")
        if self.rows == "array" and any(f.type in ("category", "text") for f in self.features):
            raise ValueError("an array has numbers and no texts")
        if self.rows == "texts" and [f.type for f in self.features] != ["text"]:
            raise ValueError("a list of texts has one feature, which is text")
        for what, names in (
            ("feature names", [f.name for f in self.features]),
            ("class values", [c.value for c in self.classes]),
            ("class labels", [c.label for c in self.classes]),
            ("output names", self.output.names),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} are not unique")
        if bool(self.classes) != self.output.has_classes:
            raise ValueError(f"{len(self.classes)} classes do not go with an output of {self.output.kind}")
        if len(self.example.golden) != self.width:
            raise ValueError(f"the golden answer has {len(self.example.golden)} values, not {self.width}")
        return self

    @property
    def dtype(self) -> Literal["<f4", "<f8"]:
        """Of the numbers of an answer: float64 for rows of features, float32 for images."""
        return "<f8" if self.image is None else "<f4"

    @property
    def width(self) -> int:
        """How many numbers an answer has."""
        start = self.output.probabilities_from
        return len(self.output.names) or 1 if start is None else start + len(self.classes)

    def best_class(self, answer: Sequence[float]) -> Class:
        """The prediction of a model with classes; of equally probable ones the first."""
        if self.output.kind == "probabilities":
            return self.classes[max(range(len(answer)), key=answer.__getitem__)]
        return self.classes[int(answer[0])]


_PLAIN = {
    "model_type": "It must be an object",
    "too_short": "There must be at least {min_length}",
    "too_long": "There may be at most {max_length}",
}
"""What pydantic would say in words of Python, by its names of the errors."""


def reason(error: ValidationError) -> str:
    """The first thing that is wrong, and where, in a few words."""
    first = error.errors()[0]
    where = "".join(f"{part}: " for part in (".".join(map(str, first["loc"])),) if part)
    plain = _PLAIN.get(first["type"])
    return where + (plain.format(**first["ctx"]) if plain else first["msg"].removeprefix("Value error, "))
