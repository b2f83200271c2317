"""The manifests of kinds that are not Kubernetes' own are what their projects' models have, and lose nothing there.

The models are generated from the published definitions: KServe's in its Python SDK, KEDA's in cloudcoil-models-keda.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.contract.environments import environment, kserve_python

pytestmark = [pytest.mark.contract, pytest.mark.timeout(600)]

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
KEDA = "cloudcoil-models-keda==2.16.1.0"

OF_KEDA = """
import json, sys
from cloudcoil.models.keda.v1alpha1 import ScaledObject
read = ScaledObject.model_validate(json.load(sys.stdin))
print(read.model_dump_json(by_alias=True, exclude_unset=True))
"""
OF_KSERVE = """
import json, sys
import kserve, kubernetes.client

def read(value, kind):
    model = getattr(kserve, kind, None) or getattr(kubernetes.client, kind, None)
    if kind.lower().startswith("list["):
        return [read(item, kind[5:-1]) for item in value]
    if model is None:
        return value
    names = {name: attribute for attribute, name in model.attribute_map.items()}
    kinds = model.openapi_types
    return {name: read(item, kinds[names[name]]) for name, item in value.items() if name in names}

print(json.dumps(read(json.load(sys.stdin), "V1beta1InferenceService")))
"""


def keda_python() -> Path:
    return environment("keda", KEDA, KEDA)


@pytest.mark.parametrize(
    ("file", "python", "program"),
    [("overlays/keda/scaled-object.yml", keda_python, OF_KEDA), ("inference-service.yml", kserve_python, OF_KSERVE)],
    ids=["KEDA", "KServe"],
)
def test_nothing_of_the_manifest_is_unknown(file: str, python: Callable[[], Path], program: str) -> None:
    manifest = yaml.safe_load((KUBERNETES / file).read_text())
    command = [str(python()), "-c", program]
    done = subprocess.run(command, input=json.dumps(manifest), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == manifest
