"""Ablations: a numbered grid of runs on one feature store; missing runs are trained and evaluated."""
