"""Shared by all stages: the output folder, content keys, devices, threads."""
