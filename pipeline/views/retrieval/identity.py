"""Provenance of displayed results, by content: the runs with their weights, the store, the galleries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cache import Store
from manifests.identity import changed_fields, digest, session_key
from manifests.schema import Session
from pipeline.evaluation.evaluate import Candidates
from pipeline.views.retrieval.trained import Trained


def data_of(store: Store, galleries: Mapping[str, Candidates], sessions: Sequence[Session]) -> dict[str, Any]:
    """Return digests of the features, of the gallery members by category, and of the sessions shown with them.

    A member is identified by the content of its image (or caption), so ids and their order do not change a digest.
    """
    bound = store.catalogue()
    members = {name: digest(sorted(bound[i].hex() for i in found.images)) for name, found in galleries.items()}
    shown = digest([session_key(session, bound).hex() for session in sessions])
    return {"store": store.fingerprint, "galleries": members, "sessions": shown}


def models_of(trained: Iterable[Trained]) -> list[dict[str, str]]:
    return [{"label": t.label, "run": t.run, "weights": t.weights} for t in trained]


def changes(made_with: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    """Return the fields that differ, old -> new, on one line; "" if there are none."""
    return "; ".join(changed_fields(dict(made_with), dict(present)))
