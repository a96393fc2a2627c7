"""Stage 1: features of a frozen single-turn model, computed once a unique image, text or pair, into a store."""
