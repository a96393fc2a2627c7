"""``study``: a preference study with blind, randomized comparisons of models, stored in one SQLite file."""
