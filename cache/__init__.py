"""Feature store: chunked, immutable HDF5 shards, committed by their digests. Depends on h5py and numpy only."""

from cache.errors import (
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreLookupError,
    StoreMismatchError,
    StoreNotFoundError,
    StoreVersionError,
)
from cache.layout import TABLES, store_path
from cache.ledger import Failure, Receipt
from cache.listing import StoreSummary, list_stores
from cache.manifest import Manifest, ShardInfo, TableInfo
from cache.reader import Store
from cache.verify import Finding, verify
from cache.workers import write_shard
from cache.writer import StoreWriter

__all__ = [
    "TABLES",
    "Failure",
    "Finding",
    "Manifest",
    "Receipt",
    "ShardInfo",
    "Store",
    "StoreBusyError",
    "StoreCorruptError",
    "StoreError",
    "StoreLookupError",
    "StoreMismatchError",
    "StoreNotFoundError",
    "StoreSummary",
    "StoreVersionError",
    "StoreWriter",
    "TableInfo",
    "list_stores",
    "store_path",
    "verify",
    "write_shard",
]
