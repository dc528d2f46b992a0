"""The setting data.filter: an SQL expression over the columns of a source, evaluated by DuckDB.

The columns are those of the index, such as width, duration and codec, and the source's own, its labels: of
the .json files in tars, or of a Parquet file or manifest. A label with the name of a column of the index is
`labels.NAME`. A file whose value is missing does not match.
"""

import importlib.util
import io

import numpy as np
import pyarrow as pa
import pyarrow.json as pa_json

from vaejax.errors import InputError, one_line

LABELS = "labels"
COLUMNS = ("path", "kind", "width", "height", "frames", "fps", "duration", "codec", "quality", "hdr", "size")
COLUMNS += ("bits_per_pixel",)
_ROW = "vaejax_row"


def matching(index: pa.Table, expression: str, key: str) -> np.ndarray:
    """The rows of an index that match an expression.

    Args:
      index: a media index.
      expression: SQL, such as "aesthetic > 5 and not hdr".
      key: setting with the source, for error messages.

    Returns:
      int64 (n,), increasing.

    Raises:
      InputError: if DuckDB is not installed, or the expression is wrong or matches no file.
    """
    setting = f"data.filter = {expression!r}"
    if importlib.util.find_spec("duckdb") is None:
        raise InputError(f"{setting}: DuckDB is not installed; accepted: pip install 'vaejax[filter]', or ''")
    import duckdb

    table = index.select([name for name in COLUMNS if name in index.column_names])
    labels = _labels(index, setting)
    if labels is not None:
        for name in labels.column_names:
            if name.lower() not in map(str.lower, table.column_names):
                table = table.append_column(name, labels[name])
        table = table.append_column(LABELS, labels.to_struct_array())
    names = ", ".join(table.column_names)
    table = table.append_column(_ROW, pa.array(np.arange(len(table))))
    # A configuration may come from someone else, so its expression reads no files.
    with duckdb.connect(":memory:", config={"enable_external_access": "false"}) as database:
        try:
            found = database.from_arrow(table).filter(expression).project(_ROW).fetchnumpy()[_ROW]
        except duckdb.Error as error:
            reason = one_line(error).partition(" Candidate bindings")[0].partition(" LINE 1")[0]
            raise InputError(f"{setting}: {key}: {reason}; accepted: SQL over {names}") from error
    if not len(found):
        raise InputError(
            f"{setting}: {key}: none of {len(index)} files match; accepted: an expression that some match"
        )
    return np.sort(np.asarray(found, np.int64))


def _labels(index: pa.Table, setting: str) -> pa.Table | None:
    """The labels of all files as columns; None if no file has labels."""
    if LABELS not in index.column_names or index[LABELS].null_count == len(index):
        return None
    lines = "\n".join(text or "{}" for text in index[LABELS].to_pylist())
    try:
        return pa_json.read_json(io.BytesIO(lines.encode()))
    except pa.ArrowException as error:
        raise InputError(
            f"{setting}: the labels differ in type: {one_line(error)}; accepted: labels of one type each"
        ) from error
