"""Ranks, metrics and significance of a run, and the result files."""
