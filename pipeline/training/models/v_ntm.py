"""ST + v-NTM: the vanilla Neural Turing Machine, a cascade of one memory (paper section 4.3)."""

from __future__ import annotations

from typing import Literal

from pipeline.training.models.cm_ntm import CMNTM


class VNTM(CMNTM):
    """The CM-NTM with C = 1: no derived features, and r^0(n) is the last read vector of the same memory."""

    title = "ST + v-NTM"

    class Options(CMNTM.Options):
        stages: Literal[1] = 1
