"""``fit-extractor``: trains a single-turn model on the train triplets (reference image, feedback, target image)."""
