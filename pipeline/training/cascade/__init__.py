"""The CM-NTM's fast path: the cascade with a hand-written backward, for the CPU and the GPU."""
