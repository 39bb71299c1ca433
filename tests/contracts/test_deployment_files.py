"""The container, compose and Kubernetes files: not root, nothing to write but volumes, probes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer.main
import yaml

from sanakit.cli.main import app
from sanakit.serve.access import OPEN

DEPLOY = Path(__file__).parents[2] / "deploy"
OPTIONS = {
    name
    for parameter in typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
    for name in parameter.opts
}


def manifests() -> dict[str, Any]:
    text = (DEPLOY / "kubernetes.yaml").read_text()
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def options_in(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def test_the_pod_is_not_root_and_writes_to_volumes_only() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    user = pod["securityContext"]["runAsUser"]
    assert f"USER {user}" in (DEPLOY / "Dockerfile").read_text().splitlines()
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"/data", "/models", "/keys", "/tmp"}


def test_probes_ask_routes_that_need_no_key() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    asked = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "readiness", "liveness")
    }
    assert asked == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    assert set(asked.values()) <= set(OPEN)


def test_a_pod_gets_longer_to_end_than_its_drain() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    [drain] = [word for word in pod["containers"][0]["args"] if word.startswith("--drain=")]
    assert pod["terminationGracePeriodSeconds"] > int(drain.partition("=")[2])
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["sanakit"]
    assert compose["stop_grace_period"] == f"{pod['terminationGracePeriodSeconds']}s"


def test_compose_opens_to_this_machine_only_and_writes_to_volumes_only() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["sanakit"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]


def test_options_are_those_of_serve() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["sanakit"]
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    [entry] = [line for line in lines if line.startswith("ENTRYPOINT")]
    command = yaml.safe_load(entry.removeprefix("ENTRYPOINT"))
    assert command[:2] == ["sanakit", "serve"]
    said = options_in(command) | options_in(service["command"])
    assert said | options_in(pod["containers"][0]["args"]) <= OPTIONS
