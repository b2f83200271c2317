"""What ``manifest.json`` says about a model, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

RESERVED_FEATURES = frozenset({"model", "image", "input", "sha256", "domain", "top_k"})


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
    crop; None resizes to ``size`` exactly.
    """

    architecture: str
    size: tuple[int, int]
    resize: int | None = None
    mode: Literal["L", "RGB"] = "RGB"
    mean: tuple[float, ...]
    std: tuple[float, ...]


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

    @property
    def probabilities_from(self) -> int | None:
        """Where in an answer the probabilities begin; None for an answer without any."""
        return {"probabilities": 0, "class_and_probabilities": 1}.get(self.kind)


PROBABILITIES = Output()
"""What manifests mean that say nothing of it."""


class Example(Part):
    """An input that the model answered when it was made, and that answer: the warm-up checks one against the other."""

    inputs: dict[str, Any]
    golden: list[FiniteFloat]


class Manifest(Part):
    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.\-]{0,63}$")]
    kind: str
    weights: Weights
    features: tuple[Feature, ...] = ()
    image: Image | None = None
    classes: tuple[Class, ...] = ()
    output: Output = PROBABILITIES
    cost_seconds: Annotated[float, Field(gt=0)]
    """Seconds that one prediction took alone, measured when the model was made."""
    example: Example
    versions: dict[str, str]
    accuracy: float | None = None
    description: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.image is None) != bool(self.features):
            raise ValueError("a model has either features or an image")
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
    def width(self) -> int:
        """How many numbers an answer has."""
        start = self.output.probabilities_from
        return len(self.output.names) or 1 if start is None else start + len(self.classes)

    def best_class(self, answer: Sequence[float]) -> Class:
        """The prediction of a model with classes; of equally probable ones the first."""
        if self.output.kind == "probabilities":
            return self.classes[max(range(len(answer)), key=answer.__getitem__)]
        return self.classes[int(answer[0])]


def reason(error: ValidationError) -> str:
    """The first thing that is wrong, and where, in a few words."""
    first = error.errors()[0]
    where = "".join(f"{part}: " for part in (".".join(map(str, first["loc"])),) if part)
    return where + first["msg"].removeprefix("Value error, ")
