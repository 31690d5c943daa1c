"""Read the released pairs of OVSeg: one cropped image per pair, and a table of their nouns.

    filepath                          title
    coco_proposal_1cap/000001.png     bicycle

The crops are filled with one colour outside the region, from which the mask can be recovered.
"""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import torch
from torch import Tensor

from ovseg.data.pairs.table import SCHEMA
from ovseg.limits import check_names
from ovseg.structures import InputError

FILL = (124, 116, 103)
FILE, TEXT = "filepath", "title"


def read_released(path: Path) -> pa.Table:
    """Read the released table into the columns of `SCHEMA`.

    Size, box and scores are unknown, and `counts` is empty: `mask_by_colour` recovers the masks.

    Raises:
        InputError: the file is not such a table, or has no pairs.
    """
    advice = f"give the folder of a store, or a tab-separated file with the header {FILE!r}, {TEXT!r}"
    try:
        with path.open("rb") as file:  # pyarrow would unpack a path such as pairs.csv.gz
            table = pyarrow.csv.read_csv(
                file,
                parse_options=pyarrow.csv.ParseOptions(delimiter="\t"),
                convert_options=pyarrow.csv.ConvertOptions(column_types={FILE: pa.string(), TEXT: pa.string()}),
            )
        column_names = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a table ({str(error).splitlines()[0]}); {advice}") from error
    if missing := [name for name in (FILE, TEXT) if name not in column_names]:
        raise InputError(f"{path} has no column {' and no column '.join(map(repr, missing))}; {advice}")
    if not table.num_rows:
        raise InputError(f"{path} contains no pairs; {advice}")
    check_names(table[FILE].to_pylist(), path)
    empty = pc.equal(pc.utf8_trim_whitespace(table[TEXT]), "")
    if pc.any(empty).as_py():
        line = pc.index(empty, True).as_py() + 2  # the header is line 1
        raise InputError(f"line {line} of {path} has no {TEXT}; delete the line or add a noun")
    multiline = pc.match_substring_regex(table[TEXT], r"[\t\r\n]")
    if pc.any(multiline).as_py():
        line = pc.index(multiline, True).as_py() + 2
        raise InputError(f"the quote in line {line} of {path} is not closed in that line; delete or double it")
    return _to_schema(table)


def mask_by_colour(crop: Tensor) -> Tensor:
    """Return where a crop, (3, h, w) in [0, 1], differs from the fill colour, (h, w) bool."""
    return ((crop * 255).round() != torch.tensor(FILL)[:, None, None]).any(dim=0)


def _to_schema(table: pa.Table) -> pa.Table:
    """Return the columns of `SCHEMA`; unknown values are zero, empty or NaN, and each crop counts as one image."""
    columns = {"image_id": pa.array(range(table.num_rows)), "file_name": table[FILE], "noun": table[TEXT]}
    unknown = {"binary": b"", "double": math.nan}
    for field in SCHEMA:
        if field.name not in columns:
            value = pa.scalar(unknown.get(str(field.type), 0), field.type)
            columns[field.name] = pa.repeat(value, table.num_rows)
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
