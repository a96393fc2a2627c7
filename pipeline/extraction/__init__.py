"""Stage 1: features of a frozen single-turn model, computed once per unique image, text or pair, and stored."""
