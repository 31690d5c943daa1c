"""The store of region-text pairs: a folder of Parquet shards that `ovseg mine` writes and adapter training reads."""

from ovseg.data.pairs.manifest import ShardLog, read_logs
from ovseg.data.pairs.page import write_page
from ovseg.data.pairs.read import read_columns, read_pairs
from ovseg.data.pairs.statistics import describe, pair_statistics
from ovseg.data.pairs.store import LOG, PairStore, Settings, write_pairs
from ovseg.data.pairs.table import Pairs

__all__ = [
    "LOG",
    "PairStore",
    "Pairs",
    "Settings",
    "ShardLog",
    "describe",
    "pair_statistics",
    "read_columns",
    "read_logs",
    "read_pairs",
    "write_page",
    "write_pairs",
]
