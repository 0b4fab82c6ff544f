"""Arrow columns as JSON text, one string per row, without a Python object per number.

Floats are written in the fewest digits that give the same value back; what JSON cannot say (NaN, infinities) becomes
null. Knows types, no column names.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def json_rows(table: pa.Table) -> pa.StringArray:
    """One JSON object per row, keys in column order."""
    return _objects(table.column_names, [column.combine_chunks() for column in table.columns])


def json_values(array: pa.Array) -> pa.StringArray:
    """JSON text of every element; nulls become ``null``."""
    kind = array.type
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        text = _objects(names, [array.field(name) for name in names])
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        text = _lists(array)
    elif pa.types.is_string(kind):
        text = _strings(array)
    elif pa.types.is_floating(kind):
        text = pc.if_else(pc.is_finite(array), array.cast(pa.string()), None)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        text = array.cast(pa.string())
    else:
        raise TypeError(f"no JSON for a column of {kind}")
    return pc.fill_null(text, "null")


def _objects(names: list[str], columns: list[pa.Array]) -> pa.StringArray:
    parts: list[pa.Array | str] = []
    for position, (name, column) in enumerate(zip(names, columns, strict=True)):
        parts += [f"{'{' if position == 0 else ','}{json.dumps(name)}:", json_values(column)]
    return pc.binary_join_element_wise(*parts, "}", "")


def _lists(array: pa.Array) -> pa.StringArray:
    """``[a,b]`` of variable and fixed lists alike; null where the list is."""
    items = json_values(array.flatten())  # without those of null lists
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), items), ",")
    return pc.if_else(array.is_valid(), pc.binary_join_element_wise("[", joined, "]", ""), None)


def _strings(array: pa.Array) -> pa.StringArray:
    """Quoted and escaped once per distinct string."""
    encoded = array.dictionary_encode()
    words = [None if word is None else json.dumps(word, ensure_ascii=False) for word in encoded.dictionary.to_pylist()]
    return pa.array(words, pa.string()).take(encoded.indices)
