"""What can go wrong in stage 2, each with the exit code of its kind."""

from __future__ import annotations

from manifests.errors import FashionNTMError, IncompleteError


class TrainingError(FashionNTMError, ValueError):
    """A request that training cannot meet: a wrong shape, a batch too small, a missing validation part."""


class FeatureError(FashionNTMError, ValueError):
    """Cached features that cannot be trained on: not finite, or f_qry and f_tar of different widths."""


class MissingFeaturesError(IncompleteError):
    """No session has all of its rows in the store."""


class DivergenceError(FashionNTMError, ArithmeticError):
    """The loss became NaN or infinite. Earlier epochs' metrics are kept; the model holds the last finite step."""


class CheckpointError(FashionNTMError, ValueError):
    """A checkpoint that is damaged, or was written by another version of its model."""


class RunError(FashionNTMError):
    """A run folder that cannot be used, e.g. because another process is training the same run."""
