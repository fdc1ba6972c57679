"""``scrimp.Rec``: scores of a model that the command trained, for every kind of table."""

import math
import os
import pathlib
import pickle
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


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """A model of ids, booleans, decimals and dates, the CSV file that trained it, and its rows as Python values."""
    if not BINARY.is_file():
        pytest.skip(f"{BINARY} is not built: the command trains the model")
    import datetime
    import decimal

    folder, rng = tmp_path_factory.mktemp("typed"), random.Random(6)
    rows = []
    for i in range(1500):
        user = None if i % 11 == 3 else 1000 + rng.randrange(40)
        day = datetime.date(2024, 2, 20) + datetime.timedelta(rng.randrange(20))
        rows.append((int(rng.random() < (user or 1020) % 10 / 10), user, rng.random() < 0.5, decimal.Decimal(rng.randrange(10**6)) / 100, day,
                     2**64 - 1 - rng.randrange(30)))
    names = ("label", "user", "flag", "price", "day", "device")
    columns = dict(zip(names, map(list, zip(*rows))))
    data, model = folder / "rows.csv", folder / "rows.model"
    text = "\n".join(",".join("" if v is None else str(v) for v in row) for row in rows)
    data.write_text(",".join(names) + "\n" + text + "\n")
    train = [BINARY, "rec", "train", data, "-o", model, "--epochs", "1", "--threads", "1", "--encoder", "full",
             "--categorical", "user,flag,day,device", "--numeric", "price"]
    subprocess.run(train, check=True, capture_output=True)
    return scrimp.Rec.load(model), data, columns


def test_ids_do_not_depend_on_the_table(typed):
    rec, data, columns = typed
    want = rec.score(data)
    assert want.std() > 0.01
    assert numpy.array_equal(rec.score(columns), want), "Python values"
    pandas, polars, pyarrow = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    # A missing id makes pandas write floats: 1007.0 is 1007.
    frame = pandas.DataFrame(columns)
    assert frame["user"].dtype == "float64"
    tables = {
        "pandas": frame, "pandas with its own types": frame.convert_dtypes(), "categories": frame.astype({"user": "category"}),
        "polars": polars.DataFrame(columns, schema_overrides={"device": polars.UInt64}),
        "pyarrow": pyarrow.table({k: pyarrow.array(v, pyarrow.uint64()) if k == "device" else v for k, v in columns.items()}),
    }
    for name, table in tables.items():
        assert numpy.array_equal(rec.score(table), want), name
    tables["pyarrow"].to_pandas().to_csv(data.with_name("again.csv"), index=False)
    pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(tables["pyarrow"], data.with_name("again.parquet"), compression="lz4")
    for name in ("again.csv", "again.parquet"):
        assert numpy.array_equal(rec.score(data.with_name(name)), want), name


def test_columns_without_a_role_may_have_any_type(typed):
    rec, data, columns = typed
    want, n = rec.score(data), len(columns["user"])
    odd = {
        "text": ["two\nlines"] * n, "list": [[1, 2]] * n, "object": [object()] * n, "mixed": [1, "a"] * (n // 2), "label": [-1] * n,
    }
    assert numpy.array_equal(rec.score({**columns, **odd, 7: [0] * n}), want)
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    frame = pandas.DataFrame({**columns, **odd, 7: [0] * n})
    assert numpy.array_equal(rec.score(frame), want)
    assert numpy.array_equal(rec.score(frame.set_index("label")), want)
    # Columns of mixed types have no Arrow type.
    mixed = frame.assign(user=[u if i % 2 else u and str(u) for i, u in enumerate(columns["user"])])
    assert numpy.array_equal(rec.score(mixed), want)
    assert numpy.array_equal(rec.score(polars.DataFrame({**columns, **{k: odd[k] for k in ("text", "list")}}, strict=False)), want)


def test_a_model_is_pickled_as_its_path(typed):
    rec, data, _ = typed
    assert numpy.array_equal(pickle.loads(pickle.dumps(rec)).score(data), rec.score(data))


def test_values_that_are_no_number_or_text_are_named(typed):
    rec, _, columns = typed
    with pytest.raises(TypeError, match="a value is a list"):
        rec.score({**columns, "user": [[1]] * len(columns["user"])})
    with pytest.raises(ValueError, match="row 0: column price: 'cheap' is not a number"):
        rec.score({**columns, "price": ["cheap"] * len(columns["user"])})
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    twice = pandas.DataFrame({k: v for k, v in columns.items() if k != "day"} | {"days": columns["day"]})
    twice = pandas.concat([twice.rename(columns={"days": "day"}), twice[["user"]]], axis=1)
    with pytest.raises(ValueError, match="user is there twice"):
        rec.score(twice)
    table = pyarrow.table({**columns, "user": [[1]] * len(columns["user"]), "device": [1] * len(columns["user"])})
    with pytest.raises(ValueError, match="column user: values of the type List"):
        rec.score(table)


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
