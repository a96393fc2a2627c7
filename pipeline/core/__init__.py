"""Shared by all stages: the output folder, devices, threads. Imports of stages are for type annotations only."""
