"""The Ray examples on a Ray of this machine: replicas behind one route, one that dies, and a table that two workers score."""

import concurrent.futures
import json
import os
import pathlib
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from conftest import ROOT

ray = pytest.importorskip("ray")
EXAMPLES = ROOT / "python" / "examples"
BINARY = pathlib.Path(os.environ.get("SCRIMP_BIN", ROOT / "target" / "release" / "scrimp"))
PORT = 8917


@pytest.fixture(scope="module")
def cluster():
    paths = os.pathsep.join([str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path.insert(0, str(EXAMPLES))
    # As many as there would be on two small machines, whatever this one has.
    options = dict(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
    try:
        ray.init(**options)
    except Exception as problem:  # not ours: no shared memory, no ports
        pytest.skip(f"Ray does not start here: {problem}")
    yield
    ray.shutdown()
    sys.path.remove(str(EXAMPLES))


def request(path, body=None):
    """Status and text of an answer."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def title(pid):
    """What a process calls itself."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_serve(cluster, monkeypatch):
    serve = pytest.importorskip("ray.serve")
    folder = os.environ.get("SCRIMP_TEST_MODELS")
    model = pathlib.Path(folder or "/nonexistent") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not model.is_file():
        pytest.skip(f"{model.name} is not in SCRIMP_TEST_MODELS ({folder})")
    monkeypatch.setenv("SCRIMP_MODEL", str(model))
    import ray_serve

    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(ray_serve.app)
    try:
        assert json.loads(request("/v1/models")[1])["data"][0]["id"] == str(model)
        body = {"messages": [{"role": "user", "content": "Count to five."}], "max_tokens": 12}
        status, text = request("/v1/chat/completions", body)
        answer = json.loads(text)
        assert status == 200 and answer["usage"]["completion_tokens"] == 12, text
        content = answer["choices"][0]["message"]["content"]
        assert content and answer["choices"][0]["finish_reason"] == "length"
        status, text = request("/v1/chat/completions", {**body, "stream": True})
        events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        assert status == 200 and events.pop() == "[DONE]"
        assert "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events) == content
        assert request("/v1/chat/completions", {"max_tokens": 3})[0] == 400
        assert request("/v1/nothing", {})[0] == 404
        # Greedy answers do not depend on the replica or on what else it does.
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: request("/v1/chat/completions", body), range(6)))
        assert [json.loads(text)["choices"][0]["message"]["content"] for _, text in answers] == [content] * 6
        # A replica that dies is replaced.
        replicas = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if b"ChatCompletions" in title(pid)]
        assert replicas
        for pid in replicas:
            os.kill(pid, 9)
        for _ in range(60):
            time.sleep(1)
            status, text = request("/v1/chat/completions", body)
            if status == 200:
                break
        assert json.loads(text)["choices"][0]["message"]["content"] == content
    finally:
        serve.shutdown()


def test_score(cluster, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    if not BINARY.is_file():
        pytest.skip(f"{BINARY} is not built: the command trains the model")
    import scrimp

    generator = random.Random(5)
    rows = [(f"u{generator.randrange(50)}", generator.randrange(5), generator.randrange(2)) for _ in range(3000)]
    table = pandas.DataFrame(rows, columns=["user", "site", "clicked"])
    table.to_csv(tmp_path / "clicks.csv", index=False)
    model, data, out = tmp_path / "clicks.model", tmp_path / "data", tmp_path / "out"
    subprocess.run([BINARY, "rec", "train", tmp_path / "clicks.csv", "-o", model, "--epochs", "1"], check=True, capture_output=True)
    data.mkdir()
    table["row"] = range(len(table))
    for i in range(3):
        table[i * 1000 : (i + 1) * 1000].to_parquet(data / f"{i}.parquet")
    import ray_data_score

    arguments = [str(EXAMPLES / "ray_data_score.py"), str(model), str(data), str(out), "--workers", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        ray_data_score.main()
    scored = pandas.concat([pandas.read_parquet(file) for file in out.glob("*.parquet")]).sort_values("row")
    assert scored["row"].tolist() == list(range(3000))
    want = scrimp.Rec.load(model).score(tmp_path / "clicks.csv")
    assert (abs(scored["score"].to_numpy() - want) < 1e-6).all()
