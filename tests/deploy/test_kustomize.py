"""The kustomize base: valid manifests that refer to what is there, and a drain that has time."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.api.health import PATHS
from serving.config import ServerSettings
from serving.server import FLUSH_SECONDS

BASE = Path(__file__).parents[2] / "deploy" / "kustomize" / "base"
GIVEN_BY_THE_NAMESPACE = {"twofour-engine", "twofour-keys"}


def load(name: str) -> Any:
    return yaml.safe_load((BASE / name).read_text())


KUSTOMIZATION = load("kustomization.yaml")
MANIFESTS = {name: load(name) for name in KUSTOMIZATION["resources"]}
POD = MANIFESTS["deployment.yaml"]["spec"]["template"]["spec"]
[SERVER] = POD["containers"]


def settings() -> dict[str, Any]:
    return tomllib.loads((BASE / "serve.toml").read_text())


def test_every_file_is_used() -> None:
    [generator] = KUSTOMIZATION["configMapGenerator"]
    used = {"kustomization.yaml", *KUSTOMIZATION["resources"], *generator["files"]}
    assert {path.name for path in BASE.iterdir()} == used


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_valid(name: str) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(MANIFESTS[name], validate.latest_version(), strict=True)


def test_volumes_come_from_somewhere() -> None:
    made = {generator["name"] for generator in KUSTOMIZATION["configMapGenerator"]}
    named = {
        volume.get("configMap", {}).get("name")
        or volume.get("secret", {}).get("secretName")
        or volume.get("persistentVolumeClaim", {}).get("claimName")
        for volume in POD["volumes"]
        if "emptyDir" not in volume
    }
    assert named == made | GIVEN_BY_THE_NAMESPACE
    mounted = {mount["name"] for mount in SERVER["volumeMounts"]}
    assert mounted == {volume["name"] for volume in POD["volumes"]}


def test_probes_and_service_point_at_the_server() -> None:
    [port] = SERVER["ports"]
    assert port["containerPort"] == settings()["port"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = SERVER[probe]["httpGet"]
        assert asked["path"] in PATHS
        assert asked["port"] == port["name"]
    assert SERVER["readinessProbe"]["httpGet"]["path"] == "/readyz", "it answers 503 in a drain"
    service = MANIFESTS["service.yaml"]
    assert service["metadata"]["name"] != "serving", "its variables would be read as settings"
    assert [one["targetPort"] for one in service["spec"]["ports"]] == [port["name"]]
    labels = MANIFESTS["deployment.yaml"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        service["spec"]["selector"],
        MANIFESTS["deployment.yaml"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["disruption-budget.yaml"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def test_the_settings_file_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in SERVER["volumeMounts"]}
    [variable] = SERVER["env"]
    assert variable == {"name": "SERVING_CONFIG", "value": f"{mounts['settings']}/serve.toml"}
    assert settings()["api_key_file"] == f"{mounts['keys']}/api-key"
    keys = tmp_path / "api-key"
    keys.write_text("key")
    monkeypatch.setenv("SERVING_CONFIG", str(BASE / "serve.toml"))
    monkeypatch.setenv("SERVING_API_KEY_FILE", str(keys))
    found = ServerSettings(directory=Path(SERVER["args"][1]))
    assert (found.host, found.log_format) == ("0.0.0.0", "json")
    assert mounts["engine"] == SERVER["args"][1]


def test_a_drain_has_the_time_that_it_needs() -> None:
    sleep = SERVER["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = sleep + settings()["shutdown_timeout"] + FLUSH_SECONDS
    assert POD["terminationGracePeriodSeconds"] > needed


def test_the_container_can_do_little() -> None:
    assert POD["securityContext"]["runAsNonRoot"]
    assert not POD["automountServiceAccountToken"]
    own = SERVER["securityContext"]
    assert own["readOnlyRootFilesystem"]
    assert not own["allowPrivilegeEscalation"]
    assert own["capabilities"]["drop"] == ["ALL"]
