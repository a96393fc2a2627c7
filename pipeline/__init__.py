"""The two stages: extraction and composition (stage 1), training and results (stage 2)."""
