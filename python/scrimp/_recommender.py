"""``scrimp.Rec``: recommenders of ``scrimp rec train``."""

import os
from typing import Any, List, Tuple, Union

from ._scrimp import RecModel


class Rec:
    """Scores rows with a DLRM.

    >>> rec = scrimp.Rec.load("flights.safetensors")
    >>> rec.score(df)  # pandas, Polars, Arrow, a dict of columns, a structured NumPy array, or the path of a file

    A pickled ``Rec`` contains the path of its model file, and not the model.
    """

    def __init__(self, model: RecModel, path: str) -> None:
        self._model, self.path = model, path

    @classmethod
    def load(cls, path: Union[str, os.PathLike]) -> "Rec":
        """Reads a model file."""
        return cls(RecModel(os.fspath(path)), os.fspath(path))

    def __reduce__(self) -> Tuple[Any, ...]:
        return Rec.load, (os.path.abspath(self.path),)

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

    @property
    def columns(self) -> List[str]:
        """The names of the columns that rows need."""
        return self._model.columns

    def score(self, rows: Any) -> Any:
        """The probability of each row, in order, as a float32 NumPy array.

        Rows need the columns of the model's schema, by name. Other columns, the label included, are ignored and may have any type.
        """
        import numpy

        return numpy.frombuffer(self._score(rows), dtype=numpy.float32).copy()

    def _score(self, rows: Any) -> bytes:
        if isinstance(rows, (str, os.PathLike)):
            return self._model.score_file(os.fspath(rows))
        names = set(self.columns)
        if hasattr(rows, "to_csv") and hasattr(rows, "columns"):  # pandas
            return self._score_pandas(rows, names)
        if hasattr(rows, "__arrow_c_stream__"):  # Arrow, Polars, DuckDB
            if hasattr(rows, "write_csv"):  # Polars: other columns may have types that Arrow lacks.
                rows = rows.select([name for name in rows.columns if name in names])
            return self._model.score_stream(rows)
        if getattr(getattr(rows, "dtype", None), "names", None):  # structured NumPy array
            rows = {name: rows[name] for name in rows.dtype.names}
        if isinstance(rows, dict):
            lengths = {len(values) for values in rows.values()}
            if len(lengths) > 1:
                raise ValueError(f"columns of different lengths: {sorted(lengths)}")
            return self._model.score_columns([(str(name), _values(rows[name])) for name in rows if str(name) in names])
        raise TypeError(
            f"rows must be a DataFrame (pandas, Polars), an Arrow table, a structured NumPy array, a dict of columns or a path, "
            f"not {type(rows).__name__}"
        )

    def _score_pandas(self, frame: Any, names: "set[str]") -> bytes:
        # Names may be integers. The index is not a column.
        frame = frame[[name for name in frame.columns if str(name) in names]].reset_index(drop=True)
        frame.columns = [str(name) for name in frame.columns]
        try:
            stream = _Stream(frame.__arrow_c_stream__())
        except (AttributeError, ImportError, TypeError, ValueError):
            # Without pyarrow, or with columns of mixed types: the values themselves.
            values = [(name, column.astype(object).where(column.notna(), None)) for name, column in frame.items()]
            return self._model.score_columns([(name, list(column)) for name, column in values])
        return self._model.score_stream(stream)


class _Stream:
    """An Arrow stream that exists already."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __arrow_c_stream__(self) -> Any:
        return self._capsule


def _values(values: Any) -> List[Any]:
    """Python values of a column. The number that is written for a short float is exact: ``0.1`` and not ``0.10000000149``."""
    dtype = getattr(values, "dtype", None)
    if getattr(dtype, "kind", None) == "f" and dtype.itemsize < 8:
        return [float(str(value)) for value in values]
    for convert in ("tolist", "to_list", "to_pylist"):
        if hasattr(values, convert):
            return list(getattr(values, convert)())
    return list(values)
