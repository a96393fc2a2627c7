"""The embedded demo: its small single-turn model, the code that builds it, and a run of both stages."""
