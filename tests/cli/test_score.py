"""`/v1/score` from a client: rows in every format, compared with `scrimp rec score`."""

import io
import json
import urllib.error
import urllib.request

import pyarrow
import pytest

from conftest import scrimp
from test_rec import clicks  # noqa: F401  (a fixture)
from test_serve import Server

ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def rows(clicks):  # noqa: F811
    """Rows, and the command's probabilities of them."""
    data, model, _ = clicks
    texts = [line.split(",") for line in data.read_text().splitlines()[1:301]]
    rows = [{"user": user, "site": site, "price": float(price)} for user, site, price, _ in texts]
    scores = scrimp("rec", "score", model, data).ok().stdout.splitlines()[:300]
    return rows, [float(p) for p in scores]


@pytest.fixture(scope="module")
def server(clicks):  # noqa: F811
    server = Server("--rec", clicks[1])
    yield server
    assert server.stop() == 0


def send(server, body, kind):
    """(status, content type, body)"""
    request = urllib.request.Request(server.url + "/v1/score", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.headers["Content-Type"], e.read()


def stream(table):
    out = io.BytesIO()
    with pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=128)
    return out.getvalue()


def test_every_form_gives_the_same_probabilities(server, rows):
    rows, want = rows
    status, said = server.post("/v1/score", {"rows": rows})
    assert status == 200 and said["rows"] == 300
    assert said["scores"] == pytest.approx(want, abs=2e-6)

    status, _, said = send(server, "".join(json.dumps(row) + "\n" for row in rows).encode(), "application/x-ndjson")
    assert status == 200 and [float(p) for p in said.split()] == pytest.approx(want, abs=2e-6)

    table = pyarrow.Table.from_pylist(rows)
    for one in (table, table.set_column(0, "user", table["user"].dictionary_encode())):
        status, kind, said = send(server, stream(one), ARROW)
        assert status == 200 and kind == ARROW
        answer = pyarrow.ipc.open_stream(said).read_all()
        assert answer.column_names == ["score"] and answer["score"].to_pylist() == pytest.approx(want, abs=2e-6)


def test_absent_and_null_are_missing(server):
    _, want = server.post("/v1/score", {"rows": [{"user": "u1"}]})
    table = pyarrow.table({"user": ["u1"], "price": pyarrow.array([None], pyarrow.float64()), "more": [1]})
    _, _, said = send(server, stream(table), ARROW)
    assert pyarrow.ipc.open_stream(said).read_all()["score"].to_pylist() == pytest.approx(want["scores"], abs=1e-6)


@pytest.mark.parametrize("body,kind,words", [
    (b"", ARROW, "not an Arrow IPC stream"),
    (b"\xff\xff\xff\xff\xff\xff\xff\x7f", ARROW, "not an Arrow IPC stream"),
    (stream(pyarrow.table({"user": [[1, 2]]})), ARROW, "column user: values of the type List"),
    (stream(pyarrow.table({"price": ["cheap"]})), ARROW, "row 0: column price: 'cheap' is not a number"),
    (b'{"user": "u1"}\n{"price": []}\n', "application/x-ndjson", "row 1"),
    (b'{"rows": [{"price": "dear"}]}', "application/json", "row 0"),
    (b'{"rows": 5}', "application/json", "rows must be a list"),
    (b'{"rows": []}', "application/json", "there are no rows"),
])
def test_bad_rows_are_named(server, body, kind, words):
    status, _, said = send(server, body, kind)
    error = json.loads(said)["error"]
    assert status == 400 and words in error["message"], error


def test_other_forms_and_too_many_rows(server):
    assert send(server, b"user,u1", "text/csv")[0] == 415
    for body, kind in [(b"{}\n" * 70_000, "application/x-ndjson"), (stream(pyarrow.table({"price": [1] * 70_000})), ARROW)]:
        status, _, said = send(server, body, kind)
        assert status == 413 and "65536 rows" in json.loads(said)["error"]["message"]


def test_damage_never_ends_the_server(server, rows):
    """Nor does it fill its log: nobody reads the standard error of this one."""
    whole = stream(pyarrow.Table.from_pylist(rows[0]))
    for at in range(0, len(whole), 5):
        broken = whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        assert send(server, broken, ARROW)[0] in (200, 400, 413)
    assert server.post("/v1/score", {"rows": rows[0][:1]})[0] == 200
