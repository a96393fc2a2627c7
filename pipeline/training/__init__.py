"""Stage 2: training of memory models on cached features. Imports no transformers and reads no images."""
