"""Shared code of the command's tests: running the command, and its models."""

import hashlib
import http.server
import json
import os
import pathlib
import resource
import shutil
import struct
import subprocess
import sys
import threading

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ROOT / "testdata" / "tiny"
TINY_GGUF = ROOT / "testdata" / "tiny-gguf"
TEXT = ROOT / "testdata" / "text" / "alice_excerpt.txt"
BINARY = pathlib.Path(os.environ.get("SCRIMP_BIN", ROOT / "target" / "release" / "scrimp"))


class Ran:
    """A finished command."""

    def __init__(self, done):
        self.status = done.returncode
        self.stdout = done.stdout.decode("utf-8")  # stdout is always UTF-8
        self.stderr = done.stderr.decode("utf-8", "replace")

    def ok(self):
        """Asserts success; returns itself."""
        assert self.status == 0, f"status {self.status}\n{self.stdout}\n{self.stderr}"
        return self

    def json(self):
        """The JSON objects on stdout: one per line, nothing else."""
        self.ok()
        return [json.loads(line) for line in self.stdout.splitlines()]

    def refused(self, *words, status=1):
        """Asserts a failure with this exit status: one `error:` line with all `words`, no panic, nothing on stdout."""
        assert self.status == status, f"status {self.status}, not {status}\n{self.stdout}\n{self.stderr}"
        assert "panicked" not in self.stderr, self.stderr
        errors = [line for line in self.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, f"one error line, not {len(errors)}:\n{self.stderr}"
        for word in words:
            assert word.lower() in self.stderr.lower(), f"{word!r} is not in:\n{self.stderr}"
        return self


def scrimp(*arguments, stdin=b"", env=None, memory_mib=None, timeout=60, stdout=subprocess.PIPE):
    """Runs scrimp. `memory_mib` limits its address space, so that a large allocation fails."""

    def limit():
        if memory_mib:
            resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))

    given = {**os.environ, "SCRIMP_CACHE": os.environ.get("SCRIMP_CACHE", str(ROOT / "target" / "models")), **(env or {})}
    done = subprocess.run([str(a) for a in (BINARY, *arguments)], input=stdin, stdout=stdout, stderr=subprocess.PIPE,
                          env=given, timeout=timeout, preexec_fn=limit, check=False)
    done.stdout = done.stdout or b""
    return Ran(done)


def read_safetensors(path):
    """(header, data) of a safetensors file."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:8 + length]), raw[8 + length:]


def write_safetensors(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def models_in(cache):
    """The model files of a cache, without their lock files."""
    return [path for path in cache.rglob("*.gguf") if path.is_file() and ".locks" not in path.parts]


def real_model(file):
    """Path of a real model, or a skip."""
    folder = os.environ.get("SCRIMP_TEST_MODELS")
    path = pathlib.Path(folder or "/nonexistent") / file
    if not path.is_file():
        pytest.skip(f"{file} is not in SCRIMP_TEST_MODELS ({folder})")
    return path


@pytest.fixture(scope="session", autouse=True)
def binary_exists():
    assert BINARY.is_file(), f"{BINARY}: build it with cargo build --release -p scrimp, or set SCRIMP_BIN"


@pytest.fixture
def smollm2():
    return real_model("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture
def tiny_copy(tmp_path):
    """A function that copies a tiny model to a writable directory."""

    def copy(name):
        target = tmp_path / name
        shutil.copytree(TINY / name, target)
        for path in target.iterdir():
            path.chmod(0o644)
        return target

    return copy


@pytest.fixture
def hub_faults():
    """Faults of the server of `hub` (`cut_after`: close a connection after that many bytes), and its log (`ranges`: the
    first byte of every requested body)."""
    return {"ranges": []}


@pytest.fixture
def hub(hub_faults):
    """A server that imitates a hub with one repository, tiny/llama, and one file, big.gguf."""
    content = (TINY_GGUF / "llama-mixed.gguf").read_bytes()
    digest = hashlib.sha256(content).hexdigest()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, with_body):
            if not self.path.split("?")[0].endswith("/tiny/llama/resolve/main/big.gguf"):
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first = 0
            asked = self.headers.get("Range", "")
            if asked.startswith("bytes="):
                first = int(asked.removeprefix("bytes=").split("-")[0])
            body = content[first:]
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{digest}"')
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.end_headers()
            if with_body:
                hub_faults["ranges"].append(first)
                cut = hub_faults.pop("cut_after", None)
                self.wfile.write(body[:cut])
                if cut:
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.shutdown(2)

        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
