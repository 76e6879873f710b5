"""The manifest for the Kubernetes gateway names metrics, options and routes that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serving.api import health
from tests.serving.conftest import open_app
from twofour.cli import app as command_line

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "deploy" / "kubernetes" / "gateway.yaml"


def part(kind: str, name: str) -> dict[str, Any]:
    parts = yaml.safe_load_all(MANIFEST.read_text())
    (found,) = [p for p in parts if (p["kind"], p["metadata"]["name"]) == (kind, name)]
    return found


def container(deployment: str) -> dict[str, Any]:
    (found,) = part("Deployment", deployment)["spec"]["template"]["spec"]["containers"]
    return found


async def test_the_picker_reads_metrics_that_the_server_has(tmp_path: Path) -> None:
    arguments = container("twofour-picker")["args"]
    named = dict(re.findall(r"--([a-z-]+-metric)=(\S+)", " ".join(arguments)))
    assert set(named) == {
        "total-queued-requests-metric",
        "total-running-requests-metric",
        "kv-cache-usage-percentage-metric",
        "lora-info-metric",
    }
    (path,) = re.findall(r"--model-server-metrics-path=(\S+)", " ".join(arguments))
    async with open_app(tmp_path) as opened:
        answer = await opened.client.get(path)
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    for flag, name in named.items():
        assert name in families, f"--{flag}: the server has no {name}"
        assert families[name].type == "gauge"
    (sample,) = families[named["lora-info-metric"]].samples
    assert set(sample.labels) == {"max_lora", "running_lora_adapters", "waiting_lora_adapters"}


def test_the_server_is_started_and_probed_as_it_can_be() -> None:
    server = container("twofour")
    serve: Any = typer.main.get_command(command_line)
    name, directory, *options = server["args"]
    known = {option for p in serve.commands[name].params for option in p.opts}
    assert {option for option in options if option.startswith("--")} <= known
    assert directory in [mount["mountPath"] for mount in server["volumeMounts"]]
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given["--host"] == "0.0.0.0"
    (port,) = server["ports"]
    assert int(given["--port"]) == port["containerPort"]
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        asked = server[probe]["httpGet"]
        assert asked["path"] in health.PATHS
        assert asked["port"] == port["name"]
    grace = part("Deployment", "twofour")["spec"]["template"]["spec"]
    assert float(given["--shutdown-timeout"]) < grace["terminationGracePeriodSeconds"]


def test_the_parts_point_at_each_other() -> None:
    pool = part("InferencePool", "twofour")["spec"]
    picker, service = container("twofour-picker"), part("Service", "twofour-picker")
    for name in ("twofour", "twofour-picker"):
        spec = part("Deployment", name)["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert pool["selector"] == part("Deployment", "twofour")["spec"]["selector"]
    assert pool["targetPorts"] == [{"number": container("twofour")["ports"][0]["containerPort"]}]
    assert pool["endpointPickerRef"]["name"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"app": "twofour-picker"}
    (grpc,) = service["spec"]["ports"]
    assert pool["endpointPickerRef"]["port"]["number"] == grpc["port"]
    assert grpc["targetPort"] == picker["ports"][0]["containerPort"]
    assert f"--grpc-port={grpc['targetPort']}" in picker["args"]
    assert f"--pool-name={part('HTTPRoute', 'twofour')['metadata']['name']}" in picker["args"]
    (rule,) = part("HTTPRoute", "twofour")["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", "twofour")
    config = yaml.safe_load(part("ConfigMap", "twofour-picker")["data"]["picker.yaml"])
    (file,) = [a.removeprefix("--config-file=") for a in picker["args"] if "--config-file" in a]
    assert Path(file).name in part("ConfigMap", "twofour-picker")["data"]
    plugins = {plugin["type"] for plugin in config["plugins"]}
    (profile,) = config["schedulingProfiles"]
    assert {plugin["pluginRef"] for plugin in profile["plugins"]} <= plugins
