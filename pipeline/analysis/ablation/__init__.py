"""Ablations: a numbered grid of runs over one store of features, trained and evaluated as far as it is missing."""
