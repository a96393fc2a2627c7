"""Training of a single-turn model (``fit-extractor``) on train triplets (reference image, feedback, target image)."""
