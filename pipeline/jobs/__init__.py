"""Jobs behind the commands: stage 1, stage 2, both in order, and listings."""
