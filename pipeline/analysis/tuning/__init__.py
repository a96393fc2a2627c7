"""Option search on the train sessions alone."""
