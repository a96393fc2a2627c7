"""Errors of stage 2."""

from __future__ import annotations

from manifests.errors import FashionNTMError, IncompleteError


class TrainingError(FashionNTMError, ValueError):
    """Raised for an invalid training request: a wrong shape, a batch too small, a missing validation part."""


class FeatureError(FashionNTMError, ValueError):
    """Raised for unusable cached features: non-finite values, or f_qry and f_tar of different widths."""


class MissingFeaturesError(IncompleteError):
    """No session has all of its rows in the store."""


class DivergenceError(FashionNTMError, ArithmeticError):
    """The loss became NaN or infinite. Metrics of earlier epochs are kept; the model has the last finite weights."""


class CheckpointError(FashionNTMError, ValueError):
    """Raised for a checkpoint that is damaged or was written by another version of its model."""


class RunError(FashionNTMError):
    """Raised for a run folder that cannot be used, e.g. because another process is training the same run."""
