"""Python interface: stores, dialogues, results and training as functions (docs/python.md). The commands use the same."""

from pipeline.api.arrays import ArrayRun, train
from pipeline.api.engine import Dialogue, Engine, Hit
from pipeline.api.results import records, results
from pipeline.api.stores import Features, open_store

__all__ = ["ArrayRun", "Dialogue", "Engine", "Features", "Hit", "open_store", "records", "results", "train"]
