"""The accuracy that a client sees: posts labelled images to /predict and counts the right answers."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.client import Address, Connection, address_of, post


@dataclass(frozen=True, slots=True)
class Score:
    """``wrong``: file name -> what was predicted instead."""

    total: int
    wrong: dict[str, str]

    @property
    def accuracy(self) -> float:
        return 1 - len(self.wrong) / self.total


def probe(address: Address, directory: Path, model: str) -> Score:
    """Posts every ``<label>_*.png``; raises ValueError on any other answer than 200, or when there is no such file.

    An answer is right when its ``prediction`` or its ``label`` is the label.
    """
    files = sorted(directory.glob("*_*.png"))
    if not files:
        raise ValueError(f"no <label>_*.png in {directory}")
    wrong = {}
    with Connection(address) as connection:
        for file in tqdm(files, "accuracy", unit=" images"):
            reply = connection.ask(post(f"/predict?model={model}", file.read_bytes(), "image/png"))
            if reply.status != 200:
                raise ValueError(f"{file.name} was answered with {reply.status}: {reply.body.decode(errors='replace')}")
            answer = json.loads(reply.body)
            if file.name.partition("_")[0] not in (answer["prediction"], answer["label"]):
                wrong[file.name] = answer["label"]
    return Score(len(files), wrong)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("directory", type=Path, help="PNG files whose names start with their label and an underscore")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the running service")
    parser.add_argument("--model", default="digits")
    options = parser.parse_args()
    score = probe(address_of(options.url), options.directory, options.model)
    print(f"{score.accuracy:.2%} of {score.total:,} images right")
    for name, predicted in score.wrong.items():
        print(f"  {name}: taken for {predicted}")


if __name__ == "__main__":
    main()
