"""Downloads of models from a server: complete, resumed, rejected."""

from conftest import TINY_GGUF, models_in, scrimp

ANY = "hf:tiny/llama:big.gguf"


def pull(hub, cache, reference=ANY):
    return scrimp("pull", reference, "--json", env={"SCRIMP_CACHE": str(cache), "HF_ENDPOINT": hub})


def test_pull_then_run(hub, tmp_path):
    result = pull(hub, tmp_path).json()[0]
    with open(result["path"], "rb") as got, open(TINY_GGUF / "llama-mixed.gguf", "rb") as wanted:
        assert got.read() == wanted.read()
    again = pull("http://127.0.0.1:9", tmp_path).json()[0]
    assert again["path"] == result["path"], "the second time needs no server"
    ran = scrimp("run", ANY, "the rain", "--raw", "--max-tokens", 2, "--json",
                 env={"SCRIMP_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert ran.json()[0]["generated_tokens"] >= 1


def test_an_interrupted_download_is_finished(hub, tmp_path, hub_faults):
    """Whether the command goes on by itself or when it is called again: what was there is not fetched twice."""
    hub_faults["cut_after"] = 100_000
    ran = pull(hub, tmp_path)
    if ran.status != 0:
        ran.refused()
        pull(hub, tmp_path).ok()
    assert any(0 < first <= 100_000 for first in hub_faults["ranges"]), hub_faults["ranges"]
    files = models_in(tmp_path)
    assert len(files) == 1 and files[0].stat().st_size == (TINY_GGUF / "llama-mixed.gguf").stat().st_size


def test_what_is_not_there(hub, tmp_path):
    pull(hub, tmp_path, "hf:tiny/llama:other.gguf").refused("other.gguf")
    assert not models_in(tmp_path)


def test_no_network_says_what_to_do(tmp_path):
    ran = pull("http://127.0.0.1:9", tmp_path)
    ran.refused("hint:")


def test_references_that_are_malformed(tmp_path):
    for reference in ["hf:", "hf:a", "pypi:", "hf:a/b:../../etc/passwd", "pypi:x==", "hf:a/b/c/d"]:
        pull("http://127.0.0.1:9", tmp_path, reference).refused(f"`{reference}`", "hint:")
        assert not [p for p in tmp_path.rglob("*") if p.is_file()], reference
