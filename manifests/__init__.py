"""Datasets, specs and identities of jobs. Imports neither torch nor h5py."""
