"""The files of deploy/: the dashboard against the metrics of a server, the options against `scrimp serve --help`, and the
chart with Helm where it is installed."""

import json
import re
import shutil
import subprocess
import urllib.request

import pytest

from conftest import ROOT, TINY, scrimp
from test_rec import clicks  # noqa: F401 (a fixture)
from test_serve import Server

DEPLOY = ROOT / "deploy"
#: Suffixes of the samples of a histogram.
SAMPLES = ("_bucket", "_sum", "_count")

yaml = pytest.importorskip("yaml", reason="SKIPPED: pyyaml is not installed")


def test_the_dashboard_uses_metrics_that_exist(clicks):  # noqa: F811
    encoders = ROOT / "testdata" / "tiny-encoders"
    server = Server(TINY / "llama", encoders / "bert", encoders / "reranker", "--rec", clicks[1])
    with urllib.request.urlopen(server.url + "/metrics", timeout=10) as answer:
        known = set(re.findall(r"^# TYPE (\S+)", answer.read().decode(), re.M))
    assert server.stop() == 0
    dashboard = json.loads((DEPLOY / "grafana" / "scrimp.json").read_text())
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    texts += [variable["query"] for variable in dashboard["templating"]["list"]]
    used = {name for text in texts for name in re.findall(r"(?:scrimp:|process_)\w+", text)}
    for suffix in SAMPLES:
        used = {name.removesuffix(suffix) if name not in known else name for name in used}
    assert len(used) > 20 and used <= known, used - known
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def options():
    """The options of `scrimp serve`."""
    return set(re.findall(r"--[a-z][a-z-]+", scrimp("serve", "--help").ok().stdout))


def test_compose_starts_the_server_with_known_options():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert {word for word in services["scrimp"]["command"] if word.startswith("--")} <= options()
    assert (DEPLOY / services["scrimp"]["build"]["context"] / services["scrimp"]["build"]["dockerfile"]).is_file()
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"], volume
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["scrimp:8080"]


def test_the_chart_uses_known_values_and_options():
    chart = DEPLOY / "helm"
    values = yaml.safe_load((chart / "values.yaml").read_text())
    assert yaml.safe_load((chart / "Chart.yaml").read_text())["apiVersion"] == "v2"
    templates = "".join(path.read_text() for path in (chart / "templates").iterdir())
    for path in set(re.findall(r"\.Values\.([\w.]+)", templates)):
        value = values
        for part in path.split("."):
            assert part in value, f"{path} is not in values.yaml"
            value = value[part]
    used = {word for word in values["args"] if word.startswith("--")} | set(re.findall(r'"(--[a-z-]+)"', templates))
    assert used <= options(), used - options()


@pytest.mark.skipif(not shutil.which("helm"), reason="SKIPPED: helm is not installed")
@pytest.mark.parametrize("settings", ["", "persistence.enabled=false,ingress.enabled=true,metrics.serviceMonitor=true,existingSecret=keys,replicas=3"])
def test_helm_renders_the_chart(settings):
    chart = DEPLOY / "helm"
    more = ["--set", settings] if settings else []
    assert subprocess.run(["helm", "lint", "--strict", chart, *more], capture_output=True, check=False).returncode == 0
    done = subprocess.run(["helm", "template", "test", chart, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kinds = [found["kind"] for found in yaml.safe_load_all(done.stdout) if found]
    assert sorted(kinds) == (["Deployment", "Ingress", "Service", "ServiceMonitor"] if settings else ["Deployment", "PersistentVolumeClaim", "Service"])
