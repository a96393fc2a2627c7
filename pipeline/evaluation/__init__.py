"""Ranks, metrics and significance of one run, and the files that keep them."""
