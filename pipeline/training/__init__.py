"""Stage 2: memory models trained on cached features alone. No transformers, no images."""
