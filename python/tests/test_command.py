"""The ``scrimp`` command of the installed package."""

import json
import pathlib
import signal
import subprocess
import sysconfig
import time

import pytest

import scrimp
from conftest import ROOT

SCRIMP = pathlib.Path(sysconfig.get_path("scripts")) / "scrimp"
TINY = ROOT / "testdata" / "tiny" / "llama"


def run(*arguments):
    return subprocess.run([SCRIMP, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)


def test_the_version_is_the_package_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"scrimp {scrimp.__version__}\n")


def test_a_model_runs():
    done = run("run", TINY, "Hi", "--raw", "--max-tokens", 4, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["generated_tokens"] == 4


@pytest.mark.parametrize("arguments, status", [(["run", "missing.gguf", "Hi"], 1), (["rec", "unknown"], 2), (["run"], 2)])
def test_failures_have_the_exit_status_of_the_command(arguments, status):
    done = run(*arguments)
    assert done.returncode == status and done.stdout == "" and "error:" in done.stderr


def test_ctrl_c_ends_the_command(tmp_path):
    arguments = ["rec", "generate", "--rows", "1000000000", "-o", str(tmp_path / "rows.csv")]
    process = subprocess.Popen([SCRIMP, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        # The output file appears after the command has installed its handler.
        while not any(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert not (tmp_path / "rows.csv").exists() and "Traceback" not in said
