"""What a job is: datasets, specs and identities. No torch, no h5py."""
