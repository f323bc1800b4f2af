"""Values as bytes of files: the same value, the same bytes."""

import dataclasses
import enum
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure


def plain(value: Any, *, nonfinite: Callable[[float], Any] = lambda _: None) -> Any:
    """A value in the types that JSON has.

    Args:
        value: dataclasses, mappings, sequences, arrays (nested lists), enums (names), paths,
            scalars of Python, NumPy and JAX, nested as they like.
        nonfinite: what stands for a NaN or an infinity, which JSON has not.

    Raises:
        TypeError: there is a value of another type.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else nonfinite(value)
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "tolist"):
        return plain(value.tolist(), nonfinite=nonfinite)
    if isinstance(value, Mapping):
        return {str(key): plain(item, nonfinite=nonfinite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, nonfinite=nonfinite) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return plain(fields, nonfinite=nonfinite)
    raise TypeError(f"JSON has no {type(value).__name__}: {value!r}")


def json_bytes(value: Any, *, sort_keys: bool = False) -> bytes:
    """JSON text of plain values, ending with a newline."""
    text = json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def table_bytes(table: pd.DataFrame) -> bytes:
    """A table as a Parquet file."""
    sink = io.BytesIO()
    # In how many chunks a table came together is not to be seen in its file.
    columns = pa.Table.from_pandas(table).combine_chunks()
    pq.write_table(columns, sink, version="2.6", compression="zstd", row_group_size=2**20)
    return sink.getvalue()


def read_table(data: bytes) -> pd.DataFrame:
    """The table of a Parquet file."""
    return pq.read_table(pa.BufferReader(data)).to_pandas()


def arrays_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays by name as an npz file.

    Raises:
        ValueError: an array holds Python objects.
    """
    found = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in found.items():
        if array.dtype.hasobject:
            raise ValueError(f"array {name} holds Python objects, which only a pickle could keep")
    sink = io.BytesIO()
    np.savez(sink, **found)  # pyright: ignore[reportArgumentType]  # None is `allow_pickle`.
    return sink.getvalue()


def read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an npz file."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def figure_bytes(figure: Figure) -> bytes:
    """A figure as a PNG file, with 120 dots an inch."""
    sink = io.BytesIO()
    # By default Matplotlib signs the file with its version.
    figure.savefig(sink, format="png", dpi=120, metadata={"Software": None})
    return sink.getvalue()
