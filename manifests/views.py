"""Views of the test set: which sessions an evaluation uses, and how many of their turns (paper Table 4)."""

from __future__ import annotations

from pydantic import Field

from manifests.schema import Frozen


class View(Frozen):
    """View of the test sessions. The default, all sessions with all turns, is that of paper Tables 2, 3 and 5.

    ``turns``: only sessions of exactly this many turns. ``last``: only this number of last turns is used; earlier
    retrievals count as correct, so the first used turn has its true reference image.
    """

    turns: int | None = Field(None, ge=1)
    last: int | None = Field(None, ge=1)

    @property
    def name(self) -> str:
        """Folder name such as ``turns4-last2``; "" for the default view."""
        last = None if self.turns is not None and self.last is not None and self.last >= self.turns else self.last
        parts = [f"{word}{n}" for word, n in (("turns", self.turns), ("last", last)) if n is not None]
        return "-".join(parts)


WHOLE = View()
