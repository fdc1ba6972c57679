"""Makes the files of this directory: the same 40 rows in several formats, as pandas and pyarrow write them.

Needs pandas and pyarrow: python make.py
"""

import datetime
import decimal
import json
import pathlib

import pandas
import pyarrow
import pyarrow.parquet

HERE = pathlib.Path(__file__).parent
ROWS = 40


def missing(i):
    """Some rows lack some values."""
    return i % 7 == 3


def columns():
    """Name, Arrow type and values of the columns that every format has."""
    noon = datetime.datetime(2024, 2, 29, 12)
    yield "y", pyarrow.int8(), [i % 2 for i in range(ROWS)]
    yield "u64", pyarrow.uint64(), [2**64 - 300 + i if i % 3 else i for i in range(ROWS)]
    yield "u32", pyarrow.uint32(), [2**32 - 1 - i for i in range(ROWS)]
    yield "id", pyarrow.int64(), [None if missing(i) else 60 + i % 9 for i in range(ROWS)]
    yield "large", pyarrow.float64(), [None if missing(i) else 1e16 * (1 + i % 4) for i in range(ROWS)]
    yield "flag", pyarrow.bool_(), [None if missing(i) else i % 3 == 0 for i in range(ROWS)]
    yield "price", pyarrow.decimal128(9, 2), [None if missing(i) else decimal.Decimal(1250 * i - 5) / 100 for i in range(ROWS)]
    yield "wide", pyarrow.decimal128(30, 2), [decimal.Decimal(10**17 * (i % 3 - 1) + i) / 100 for i in range(ROWS)]
    yield "half", pyarrow.float16(), [None if missing(i) else i / 4 for i in range(ROWS)]
    yield "single", pyarrow.float32(), [None if missing(i) else i / 10 for i in range(ROWS)]
    yield "day", pyarrow.date32(), [datetime.date(1969, 12, 20) + datetime.timedelta(i) for i in range(ROWS)]
    yield "second", pyarrow.timestamp("s"), [noon + datetime.timedelta(seconds=i) for i in range(ROWS)]
    yield "micro", pyarrow.timestamp("us", "UTC"), [noon + datetime.timedelta(microseconds=i + 1) for i in range(ROWS)]
    yield "text", pyarrow.string(), [None if missing(i) else f"word {i % 5}" for i in range(ROWS)]


def main():
    names, types, values = zip(*columns())
    table = pyarrow.table([pyarrow.array(v, t) for v, t in zip(values, types)], names=names)
    with pyarrow.ipc.new_stream(HERE / "rows.arrow", table.schema) as stream:
        stream.write_table(table)
    frame = table.to_pandas()
    frame.to_csv(HERE / "rows.csv", index=False)
    rows = [dict(zip(names, row)) for row in zip(*values)]
    for row in rows:
        row["second"], row["micro"] = str(row["second"]), f"{row['micro']}+00:00"
        for name in ("price", "wide"):
            row[name] = row[name] and f"{row[name]:.2f}"
    lines = (json.dumps(row, default=str) for row in rows)
    (HERE / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    # Columns that cannot be read.
    lists = pyarrow.array([["a"] * (i % 3) for i in range(ROWS)])
    structs = pyarrow.array([{"x": i} for i in range(ROWS)])
    maps = pyarrow.array([[("k", i)] for i in range(ROWS)], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    for name, column in (("tags", lists), ("place", structs), ("counts", maps)):
        table = table.append_column(name, column)
    for codec in ("none", "snappy", "gzip", "zstd", "lz4", "brotli"):
        pyarrow.parquet.write_table(table, HERE / f"rows.{codec}.parquet", compression=codec)


if __name__ == "__main__":
    main()
