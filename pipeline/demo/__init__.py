"""The embedded demo: its small single-turn model, how it is built, and both stages run on it."""
