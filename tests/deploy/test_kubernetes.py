"""The manifests are what Kubernetes' own schemas allow, and what belongs together agrees."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.config import Settings

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ["base", "overlays/trial", "overlays/production", "overlays/gpu", "overlays/keda"]
OTHERS = {"ScaledObject", "InferenceService"}
"""Kinds that are not Kubernetes' own."""
VERSION = "1.33"

Document = dict[str, Any]


def read(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.fixture(params=OVERLAYS)
def built(request: pytest.FixtureRequest, program: Callable[[str], str]) -> list[Document]:
    build = ["kubectl", "kustomize"] if shutil.which("kubectl") else [program("kustomize"), "build"]
    return read(subprocess.check_output([*build, str(KUBERNETES / request.param)], text=True))


def validate(documents: list[Document]) -> None:
    for document in documents:
        if document["kind"] not in {"Kustomization", *OTHERS}:
            kubernetes_validate.validate(document, VERSION, strict=True)


def of_kind(documents: list[Document], kind: str, name: str = "cached-prediction") -> Document:
    [found] = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


@pytest.mark.parametrize("file", sorted(KUBERNETES.rglob("*.yml")), ids=lambda file: str(file.relative_to(KUBERNETES)))
def test_every_manifest_is_valid(file: Path) -> None:
    validate(read(file.read_text()))


def test_every_overlay_builds_to_what_is_valid(built: list[Document]) -> None:
    validate(built)


def test_one_autoscaler_sets_the_replicas(built: list[Document]) -> None:
    # A number of replicas in the manifest would take back, at each apply, what the autoscaler has added.
    assert "replicas" not in of_kind(built, "Deployment")["spec"]
    assert len([d for d in built if d["kind"] in {"HorizontalPodAutoscaler", "ScaledObject"}]) == 1


def test_a_namespace_with_restricted_security_takes_every_pod(built: list[Document]) -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    for workload in (d for d in built if d["kind"] in {"Deployment", "StatefulSet"}):
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] != 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", "emptyDir", "persistentVolumeClaim"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_selectors_find_their_pods(built: list[Document]) -> None:
    labels = of_kind(built, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        of_kind(built, "Deployment")["spec"]["selector"]["matchLabels"],
        of_kind(built, "Service")["spec"]["selector"],
        of_kind(built, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind(built, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items() and selector


def test_the_images_of_strangers_fit_into_a_replicas_memory(built: list[Document]) -> None:
    [container] = of_kind(built, "Deployment")["spec"]["template"]["spec"]["containers"]
    given = {variable["name"]: variable.get("value") for variable in container["env"]}
    # A worker decodes in as many threads as the replica requests CPUs, and 20 bytes a pixel are what a WebP file takes.
    decoding = int(given["PREDICT_MAX_IMAGE_PIXELS"]) * 20 * int(given["PREDICT_WORKERS"])
    assert container["resources"]["requests"]["cpu"] in {"1", "250m"}
    assert decoding + 700 * 2**20 < int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30


def test_the_grace_of_a_pod_is_longer_than_a_drain(built: list[Document]) -> None:
    pod = of_kind(built, "Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    given = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    drain = float(given["PREDICT_DRAIN_SECONDS"])
    assert drain + Settings().grace_seconds < pod["terminationGracePeriodSeconds"]
    # A load balancer that asks /readyz this often has noticed before the drain is over.
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"] < drain
    assert {name for name in given if name.startswith("PREDICT_")} <= {
        f"PREDICT_{name.upper()}" for name in Settings.model_fields
    }
