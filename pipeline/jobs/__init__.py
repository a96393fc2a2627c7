"""Jobs that a command starts: stage 1, stage 2, both in order, and lists of what is there."""
