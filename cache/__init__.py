"""The feature store: chunked, immutable HDF5 shards. h5py and numpy only."""
