"""Search for options on the train sessions alone."""
