"""The run spec of the tests of ablations and searches: a small world of captions, two models without training, an LSTM."""

from tests.caption_project import CAPTIONS

SPEC = (
    """
name = "small"
seeds = [0]
"""
    + CAPTIONS
    + """dim = 8
[composer.fit]
epochs = 2
[training]
epochs = 2
batch_size = 16
learning_rate = 1e-2
[validation]
fraction = 0.2
[models.avg]
[models.cat]
[models.lstm]
hidden = 4
"""
)
