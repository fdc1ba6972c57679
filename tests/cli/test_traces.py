"""OpenTelemetry traces of the server, sent to a collector of this test."""

import http.server
import json
import os
import threading
import urllib.error
import urllib.request

import pytest

from test_serve import Server, model  # noqa: F401  (a fixture)


class Collector:
    """Receives spans as JSON."""

    def __init__(self, status=200):
        self.bodies = bodies = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                bodies.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self):
        """(attributes of the resource, spans)"""
        assert {path for path, _ in self.bodies} <= {"/v1/traces"}
        resources = [resource for _, body in self.bodies for resource in body["resourceSpans"]]
        spans = [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]
        return (attributes(resources[0]["resource"]) if resources else {}), spans


def attributes(owner):
    return {a["key"]: next(iter(a["value"].values())) for a in owner["attributes"]}


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def serve(model, collector, **env):  # noqa: F811
    return Server(model, "--kv-format", "f32", env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **env})


def test_a_request_is_a_part_of_its_clients_trace(model, collector):  # noqa: F811
    server = serve(model, collector)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    body = {"prompt": "The cat", "max_tokens": 8, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode(), {
        "Content-Type": "application/json", "traceparent": f"00-{trace}-{parent}-01", "X-Request-Id": "mine"})
    assert urllib.request.urlopen(request, timeout=60).read().endswith(b"[DONE]\n\n")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(server.url + "/v1/models/none", timeout=10)
    assert server.stop() == 0
    resource, spans = collector.spans()
    assert resource["service.name"] == "scrimp"
    named = {span["name"]: span for span in spans}
    assert set(named) == {"POST /v1/completions", "GET /v1/models/{*id}", "queue", "prefill", "decode"}
    root = named["POST /v1/completions"]
    assert (root["traceId"], root["parentSpanId"]) == (trace, parent)
    found = attributes(root)
    assert int(found["http.response.status_code"]) == 200 and found["http.request.header.x-request-id"] == "mine"
    phases = [named[name] for name in ("queue", "prefill", "decode")]
    assert all((span["traceId"], span["parentSpanId"]) == (trace, root["spanId"]) for span in phases)
    times = [int(t) for span in phases for t in (span["startTimeUnixNano"], span["endTimeUnixNano"])]
    assert times == sorted(times) and int(root["startTimeUnixNano"]) <= times[0]
    assert int(attributes(named["decode"])["gen_ai.usage.output_tokens"]) == 8
    other = named["GET /v1/models/{*id}"]
    assert other["traceId"] != trace and int(attributes(other)["http.response.status_code"]) == 404


def test_variables_of_the_specification_apply(model, collector):  # noqa: F811
    server = serve(model, collector, OTEL_SERVICE_NAME="chat-1", OTEL_TRACES_SAMPLER="always_off")
    urllib.request.urlopen(server.url + "/v1/models", timeout=10).close()
    assert server.stop() == 0
    assert collector.spans()[1] == []


def test_without_a_collector_the_server_answers(model):  # noqa: F811
    gone = Collector()
    gone.server.shutdown()
    gone.server.server_close()
    server = serve(model, gone)
    assert server.post("/v1/completions", {"prompt": "The cat", "max_tokens": 4})[0] == 200
    assert server.stop() == 0


def test_an_invalid_endpoint_is_an_error(model):  # noqa: F811
    from conftest import scrimp
    scrimp("serve", model, "--port", 0, env={"OTEL_EXPORTER_OTLP_ENDPOINT": "not a url"}).refused("OTEL")
