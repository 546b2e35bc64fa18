"""Statements whose values and rows travel as one text of JSON each.

A connection of somebody else's may have codecs, loaders and row factories of its own for any type.
So nothing but text goes through them: a statement takes all its values as one JSON array, and the
server makes one JSON array of its rows. Bytes are Base64 in there.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

_PLACE: Final = re.compile(r"\$(\d+)")

TEXTS: Final = "text[]"
NUMBERS: Final = "bigint[]"
NUMBER: Final = "bigint"
DATA: Final = "bytea[]"

_READERS: Final = {
    TEXTS: "ARRAY(SELECT jsonb_array_elements_text({0}))",
    NUMBERS: "ARRAY(SELECT jsonb_array_elements_text({0})::bigint)",
    DATA: "ARRAY(SELECT decode(jsonb_array_elements_text({0}), 'base64'))",
    NUMBER: "({0} #>> '{{}}')::bigint",
}
"""What makes a value of each type out of its place in the JSON array."""

_WRITERS: Final = {"data": "encode(data, 'base64')", "conflicts": "to_jsonb(conflicts)"}
"""Columns that are written otherwise than as they are."""

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(list[list[Any]]).decode


def textual(sql: str, types: Sequence[str], columns: Sequence[str]) -> str:
    """The statement with one place, ``%s``, for all values, which gives all rows as one text.

    Args:
        sql: a statement with places ``$1``, ``$2`` and so on.
        types: the type of each place.
        columns: what its columns are to be called; ``data`` is bytes.
    """
    with_values = _PLACE.sub(lambda found: _read(int(found[1]) - 1, types), sql)
    names = ", ".join(columns)
    row = ", ".join(_WRITERS.get(column, column) for column in columns)
    return (
        f"WITH given AS MATERIALIZED (SELECT %s::text::jsonb AS a), found ({names}) AS ({with_values}) "
        f"SELECT coalesce(jsonb_agg(jsonb_build_array({row})), '[]')::text FROM found"
    )


def _read(place: int, types: Sequence[str]) -> str:
    return _READERS[types[place]].format(f"(SELECT a->{place} FROM given)")


def values_as_text(values: Sequence[Any]) -> str:
    """The values of a statement, as its one text."""
    return _encode(values).decode()


def rows_of_text(text: str, data_column: int | None = None) -> list[list[Any]]:
    """The rows of a statement, with the bytes of one column decoded."""
    rows = _decode(text)
    if data_column is not None:
        for row in rows:
            row[data_column] = None if row[data_column] is None else base64.b64decode(row[data_column])
    return rows
