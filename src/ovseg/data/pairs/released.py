"""Reads the pairs that the authors of OVSeg published: a crop image a pair, and a table of their names.

    filepath                          title
    coco_proposal_1cap/000001.png     bicycle

The crops are already filled with one colour outside the region, so that their masks are in them.
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
    """Pairs of whole images, in the columns of `SCHEMA`, without run lengths, size, box and scores.

    `counts` is empty, see `mask_by_colour`.

    Raises:
        InputError: the file is no such table, or has no pairs.
    """
    advice = f"give the folder of a store, or a tab-separated file with the header {FILE!r}, {TEXT!r}"
    try:
        with path.open("rb") as file:  # by a name such as pairs.csv.gz it would be unpacked
            table = pyarrow.csv.read_csv(
                file,
                parse_options=pyarrow.csv.ParseOptions(delimiter="\t"),
                convert_options=pyarrow.csv.ConvertOptions(column_types={FILE: pa.string(), TEXT: pa.string()}),
            )
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as a table ({str(error).splitlines()[0]}); {advice}") from error
    if missing := [name for name in (FILE, TEXT) if name not in table.column_names]:
        raise InputError(f"{path} has no column {' and no column '.join(map(repr, missing))}; {advice}")
    if not table.num_rows:
        raise InputError(f"{path} holds no pairs; {advice}")
    check_names(table[FILE].to_pylist(), path)
    empty = pc.equal(pc.utf8_trim_whitespace(table[TEXT]), "")
    if pc.any(empty).as_py():
        line = pc.index(empty, True).as_py() + 2  # the header is line 1
        raise InputError(f"line {line} of {path} has no {TEXT}; delete it or give the region a name")
    swallowing = pc.match_substring_regex(table[TEXT], r"[\t\r\n]")
    if pc.any(swallowing).as_py():
        line = pc.index(swallowing, True).as_py() + 2
        raise InputError(f"the quote in line {line} of {path} does not end in that line; delete or double it")
    return _as_stored(table)


def mask_by_colour(crop: Tensor) -> Tensor:
    """Where a crop, (3, h, w) in [0, 1], is not filled: (h, w) bool."""
    return ((crop * 255).round() != torch.tensor(FILL)[:, None, None]).any(dim=0)


def _as_stored(table: pa.Table) -> pa.Table:
    """Columns of `SCHEMA`, zero, empty or nan where they are unknown; each crop is an image of its own."""
    columns = {"image_id": pa.array(range(table.num_rows)), "file_name": table[FILE], "noun": table[TEXT]}
    unknown = {"binary": b"", "double": math.nan}
    for field in SCHEMA:
        if field.name not in columns:
            value = pa.scalar(unknown.get(str(field.type), 0), field.type)
            columns[field.name] = pa.repeat(value, table.num_rows)
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
