"""Fill the cache for the next version of a model: ``python -m training.warm NAME QUESTIONS``, before SIGHUP deploys it.

QUESTIONS are those of training.compare. Their answers are computed here, by the service's own data path, and stored in
the service's Redis, so PREDICT_REDIS_URL and the other settings must be the service's own.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from service.config import Settings, load_settings
from service.errors import ConfigurationError, ServiceError
from service.inference.predictor import Question
from service.lookup import Answer
from service.runtime import open_runtime
from training import sentences
from training.questions import AT_ONCE, Asked, parsed, read_questions

SECONDS = 3600.0
"""Nobody waits for these answers, so each may take so long."""


async def warm(settings: Settings, name: str, questions: Iterator[Asked]) -> tuple[str, Counter[str]]:
    """The version, and how many questions were ``stored``, ``known`` already, ``refused``, or were ``not stored``;
    raises ConfigurationError."""
    if settings.redis_url == "embedded":
        raise ConfigurationError("An embedded Redis belongs to one service alone: only an outer one can be filled.")
    counts = Counter[str]()
    patient = settings.model_copy(update={"deadline_seconds": SECONDS, "audit_share": 0.0})
    async with open_runtime(patient) as runtime:
        if (state := runtime.pipeline.l2.state) != "up":
            raise ConfigurationError(f"Redis is {state}: PREDICT_REDIS_URL must name the service's own.")
        model = runtime.model(name)
        while some := list(islice(questions, min(AT_ONCE, settings.max_queue_size))):
            asked = [parsed(model.predictor, one) for one in some]
            asking = [runtime.pipeline.answer(model, one) for one in asked if isinstance(one, Question)]
            answers = await asyncio.gather(*asking, return_exceptions=True)
            counts += Counter(map(_outcome, answers))
            counts["refused"] += len(some) - len(answers)
        return model.version, counts


def _outcome(answer: Answer | BaseException) -> str:
    if isinstance(answer, Answer):
        is_in_redis = answer.stored and not answer.l2_down
        return "known" if answer.hit else "stored" if is_in_redis else "not stored"
    if isinstance(answer, ServiceError):
        return "refused"
    raise answer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.warm", description="Fill the cache for the next version.")
    parser.add_argument("name", help="of the model that is published and not loaded yet")
    parser.add_argument("questions", type=Path, help="a CSV as /predict_batch takes it, or a directory of images")
    options = parser.parse_args(arguments)
    with sentences(f"{options.questions} or the model cannot be read"):
        settings = load_settings()
        version, counts = asyncio.run(warm(settings, options.name, read_questions(options.questions)))
    print(f"{options.name} {version}: " + ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items()))
    if counts["not stored"]:
        sys.exit("Redis did not take all answers.")


if __name__ == "__main__":
    main()
