"""``scrimp.Rec``: scores of a model that the command trained, for every kind of table."""

import math
import os
import pathlib
import random
import subprocess

import pytest

import scrimp
from conftest import ROOT

numpy = pytest.importorskip("numpy")
BINARY = pathlib.Path(os.environ.get("SCRIMP_BIN", ROOT / "target" / "release" / "scrimp"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    if not BINARY.is_file():
        pytest.skip(f"{BINARY} is not built: the command trains the model")
    folder, rng = tmp_path_factory.mktemp("clicks"), random.Random(5)
    likes = [rng.gauss(0, 1.5) for _ in range(50)]
    rows = []
    for _ in range(2000):
        user, price = rng.randrange(50), round(rng.lognormvariate(0, 1), 3)
        clicked = int(rng.random() < 1 / (1 + math.exp(-likes[user] + 0.5 * math.log(price + 0.01))))
        rows.append((f"u{user}", rng.randrange(5), price, clicked))
    columns = dict(zip(("user", "site", "price", "clicked"), map(list, zip(*rows))))
    data = folder / "clicks.csv"
    data.write_text("user,site,price,clicked\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    model = folder / "clicks.model"
    subprocess.run([BINARY, "rec", "train", data, "-o", model, "--epochs", "1", "--threads", "1"], check=True, capture_output=True)
    return scrimp.Rec.load(model), data, columns


def test_tables_of_every_kind(trained):
    rec, data, columns = trained
    want = rec.score(data)
    assert want.shape == (2000,) and want.dtype == numpy.float32 and ((want > 0) & (want < 1)).all()
    assert want.std() > 0.01
    del columns["clicked"]  # nobody has labels when scoring
    assert numpy.array_equal(rec.score(columns), want)
    kinds = [("U8", "user"), ("i8", "site"), ("f8", "price")]
    structured = numpy.array(list(zip(*columns.values())), dtype=[(name, kind) for kind, name in kinds])
    assert numpy.array_equal(rec.score(structured), want)
    assert rec.score({name: values[:0] for name, values in columns.items()}).shape == (0,)
    for library, make in (("pandas", "DataFrame"), ("polars", "DataFrame"), ("pyarrow", "table")):
        try:
            module = __import__(library)
        except ImportError:
            continue
        assert numpy.array_equal(rec.score(getattr(module, make)(columns)), want), library
    assert "user" in rec.schema and rec.embedding_bytes > 0


def test_bad_input(trained, tmp_path):
    rec, _, columns = trained
    with pytest.raises(ValueError, match="user"):
        rec.score({"site": columns["site"], "price": columns["price"]})
    with pytest.raises(ValueError, match="different lengths"):
        rec.score({"user": ["u1"], "site": [1, 2], "price": [1.0]})
    with pytest.raises(TypeError, match="rows must be"):
        rec.score(5)
    with pytest.raises(ValueError, match="nonexistent"):
        scrimp.Rec.load(tmp_path / "nonexistent")
    (tmp_path / "bad").write_bytes(b"nonsense" * 100)
    with pytest.raises(ValueError):
        scrimp.Rec.load(tmp_path / "bad")
