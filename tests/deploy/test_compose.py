"""The compose file refers to files, settings and services that are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from serving.config import ServerSettings

DEPLOY = Path(__file__).parents[2] / "deploy"


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def test_mounted_files_exist() -> None:
    compose = load("compose.yaml")
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), source
            elif not source.startswith("$"):
                assert source in compose["volumes"]
        for secret in service.get("secrets", []):
            assert secret in compose["secrets"]
        for other in service.get("depends_on", []):
            assert other in compose["services"]
        image = service["image"]
        pinned = re.search(r":v?\d+\.\d+\.\d+$", image)
        assert "build" in service or pinned, f"{image} is not pinned"
    build = compose["services"]["server"]["build"]
    stages = re.findall(r" AS (\S+)", (DEPLOY / build["context"] / "Dockerfile").read_text())
    assert build["target"] in stages


def test_the_server_gets_settings_that_exist() -> None:
    service = load("compose.yaml")["services"]["server"]
    names = {name.removeprefix("SERVING_").lower() for name in service["environment"]}
    assert names <= ServerSettings.model_fields.keys()
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace > ServerSettings.model_fields["shutdown_timeout"].default + 5


def test_ports_are_open_to_this_machine_only() -> None:
    for service in load("compose.yaml")["services"].values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_prometheus_scrapes_the_server_with_its_key() -> None:
    compose = load("compose.yaml")
    [job] = load("prometheus/prometheus.yml")["scrape_configs"]
    [target] = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in compose["services"]
    assert any(shown.endswith(f":{port}") for shown in compose["services"][host]["ports"])
    secret = Path(job["authorization"]["credentials_file"]).name
    assert secret in compose["services"]["prometheus"]["secrets"]
    assert compose["services"]["server"]["environment"]["SERVING_API_KEY_FILE"].endswith(secret)


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    compose = load("compose.yaml")
    [source] = load("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert host in compose["services"]
    assert port == "9090"
    used = re.findall(r'"uid": "(\w+)"', (DEPLOY / "grafana" / "dashboard.json").read_text())
    assert set(used) == {source["uid"], "twofour"}
    [provider] = load("grafana/provisioning/dashboards/twofour.yml")["providers"]
    mounts = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert any(mount.startswith(provider["options"]["path"] + "/") for mount in mounts)
