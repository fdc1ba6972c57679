"""``scrimp.Rec``: recommenders of ``scrimp rec train``."""

import csv
import os
import pathlib
import tempfile
from typing import Any, List, Union

from ._scrimp import RecModel


class Rec:
    """Scores rows with a DLRM.

    >>> rec = scrimp.Rec.load("flights.safetensors")
    >>> rec.score(df)  # pandas, Polars, Arrow, a dict of columns, a structured NumPy array, or the path of a file
    """

    def __init__(self, model: RecModel, path: str) -> None:
        self._model, self.path = model, path

    @classmethod
    def load(cls, path: Union[str, os.PathLike]) -> "Rec":
        """Reads a model file."""
        return cls(RecModel(os.fspath(path)), os.fspath(path))

    def __repr__(self) -> str:
        return f"Rec({self.path!r}, embedding_bytes={self.embedding_bytes})"

    @property
    def embedding_bytes(self) -> int:
        """Size of the embedding tables in bytes."""
        return self._model.embedding_bytes

    @property
    def schema(self) -> str:
        """The schema of the model's columns, as TOML."""
        return self._model.schema

    def score(self, rows: Any) -> Any:
        """The probability of each row, in order, as a float32 NumPy array.

        Rows need the columns of the model's schema, by name. Other columns, the label included, are ignored.
        """
        import numpy

        if isinstance(rows, (str, os.PathLike)):
            return numpy.asarray(self._model.score_file(os.fspath(rows)), dtype=numpy.float32)
        with tempfile.TemporaryDirectory(prefix="scrimp-") as folder:
            path = pathlib.Path(folder) / "rows.csv"
            if _write(rows, path) == 0:
                return numpy.empty(0, dtype=numpy.float32)
            return numpy.asarray(self._model.score_file(str(path)), dtype=numpy.float32)


def _write(rows: Any, path: pathlib.Path) -> int:
    """Writes a table as CSV and returns its number of rows. Duck typing recognizes tables without importing their libraries."""
    if hasattr(rows, "to_csv") and hasattr(rows, "columns"):  # pandas
        rows.to_csv(path, index=False)
        return len(rows)
    if hasattr(rows, "write_csv"):  # Polars
        rows.write_csv(path)
        return rows.height
    if hasattr(rows, "to_pydict"):  # Arrow table or record batch
        return _write_columns(rows.to_pydict(), path)
    if getattr(getattr(rows, "dtype", None), "names", None):  # structured NumPy array
        return _write_columns({name: rows[name].tolist() for name in rows.dtype.names}, path)
    if isinstance(rows, dict):
        return _write_columns({name: list(values) for name, values in rows.items()}, path)
    raise TypeError(
        f"rows must be a DataFrame (pandas, Polars), an Arrow table, a structured NumPy array, a dict of columns or a path, "
        f"not {type(rows).__name__}"
    )


def _write_columns(columns: "dict[str, List[Any]]", path: pathlib.Path) -> int:
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"columns of different lengths: {sorted(lengths)}")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))
    return lengths.pop() if lengths else 0
