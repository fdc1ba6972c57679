"""The OpenAPI description of the server: it is valid, its paths exist, and random requests of its shape (schemathesis) have
answers of its shape. No request may cause a status of 5xx.

schemathesis is an optional package (requirements.txt): without it, its test is skipped."""

import json
import os
import pathlib
import random
import sys
import urllib.error
import urllib.request

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))

from conftest import ROOT
from test_serve import Server, model  # noqa: F401 (a fixture)

#: Random requests for each operation: valid ones, and invalid ones.
EXAMPLES = int(os.environ.get("SCRIMP_TEST_EXAMPLES", 6))

#: A part of a path, and the model that answers it; others: the chat model.
MODELS = {"embed": "bert", "rank": "reranker", "score": "reranker"}


@pytest.fixture(scope="module")
def server(model):  # noqa: F811
    encoders = ROOT / "testdata" / "tiny-encoders"
    server = Server(model, encoders / "bert", encoders / "reranker", "--kv-format", "f32", "--served-model-name", "tiny-chat", "--max-model-len", 256)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def description(server):
    with urllib.request.urlopen(server.url + "/openapi.json", timeout=10) as answer:
        return json.loads(answer.read())


def required(description, operation):
    """The required fields of an operation's body."""
    body = description["paths"][operation.path][operation.method]["requestBody"]["content"]["application/json"]["schema"]
    return description["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]].get("required", ())


def prepared(body, path, needed, keeps_all):
    """A body with a model that exists, short answers, and few optional fields: with all of them, one is often wrong."""
    chosen = random.Random(repr(sorted(body)))
    optional = sorted(set(body) - set(needed))
    left_out = set() if keeps_all else set(optional) - set(chosen.sample(optional, min(len(optional), chosen.randrange(4))))
    body = {name: value for name, value in body.items() if name not in left_out}
    for name in {"max_tokens", "max_completion_tokens", "max_output_tokens"} & set(body):
        body[name] = 4
    if isinstance(body.get("model"), str):
        body["model"] = next((name for word, name in MODELS.items() if word in path), "tiny-chat")
    return body


def test_described_paths_exist(server, description):
    for path, operations in description["paths"].items():
        for method in operations:
            url = server.url + path.replace("{", "").replace("}", "")
            request = urllib.request.Request(url, method=method.upper(), data=b"{}" if method == "post" else None,
                                             headers={"Content-Type": "application/json"})
            try:
                status, text = 200, urllib.request.urlopen(request, timeout=60).read().decode()
            except urllib.error.HTTPError as e:
                status, text = e.code, e.read().decode()
            assert status != 405 and "unknown path" not in text, (method, path, status, text[:200])


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_random_requests_have_described_answers(server, description, mode):
    schemathesis = pytest.importorskip("schemathesis", reason="SKIPPED: schemathesis is not installed")
    from hypothesis.errors import Unsatisfiable
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.core.failures import FailureGroup
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
    wanted = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    failures, mode = [], schemathesis.GenerationMode[mode]
    for result in schemathesis.openapi.from_dict(description).get_all_operations():
        operation = result.ok()

        @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case):
            if isinstance(case.body, dict):
                needed = required(description, operation)
                case.body = prepared(case.body, operation.path, needed, keeps_all=mode is schemathesis.GenerationMode.NEGATIVE)
            response = case.call(base_url=server.url, timeout=60)
            case.validate_response(response, checks=wanted)

        try:
            run()
        except Unsatisfiable:
            # No request of this operation is invalid.
            continue
        except (Exception, FailureGroup) as e:  # All operations are reported together.
            failures.append(f"{operation.method} {operation.path}: {e}"[:1500])
    assert not failures, "\n\n".join(failures)
