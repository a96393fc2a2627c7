"""Export of a run for other programs: the memory model and the composer as PyTorch or ONNX graphs."""
