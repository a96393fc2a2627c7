"""Backends that compute training steps: the reference, the CM-NTM's fast path in several forms, and stacked models."""
