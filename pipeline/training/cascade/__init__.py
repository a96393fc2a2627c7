"""Fast path of the CM-NTM: the cascade with a hand-written backward pass, for CPU and GPU."""
