"""``study``: which model's results do people prefer? Blind, randomised comparisons, kept in one SQLite file."""
