"""Which test sessions an evaluation looks at, and how much of each goes in (paper Table 4)."""

from __future__ import annotations

from pydantic import Field

from manifests.schema import Frozen


class View(Frozen):
    """A way to evaluate a trained run. The default one, all sessions whole, is that of paper Tables 2, 3 and 5.

    ``turns``: only sessions of exactly this many turns. ``last``: only their last turns go in; the retrievals before
    are taken as right, so the first turn that goes in has its true reference image.
    """

    turns: int | None = Field(None, ge=1)
    last: int | None = Field(None, ge=1)

    @property
    def name(self) -> str:
        """ "" for the default view, else a folder name such as ``turns4-last2``."""
        last = None if self.turns is not None and self.last is not None and self.last >= self.turns else self.last
        parts = [f"{word}{n}" for word, n in (("turns", self.turns), ("last", last)) if n is not None]
        return "-".join(parts)


WHOLE = View()
