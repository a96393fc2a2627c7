"""Single-turn queries of a dataset: each distinct (reference, feedback, target) as a session of one turn."""

from __future__ import annotations

from manifests.schema import NO_IMAGE, Dataset, Session


def one_turn_sessions(dataset: Dataset) -> tuple[tuple[Session, ...], int]:
    """Return (test sessions of one turn, number of turns left out because their target is not in the gallery).

    Turns without a reference image are left out too. A session's first turn with its content gives the id
    ``<session id>#<turn>``; a session of one turn keeps its id.
    """
    members = {g.category: set(g.images) for g in dataset.galleries if g.split == "test"}
    found: dict[tuple[str, str, str, str], Session] = {}
    outside = 0
    for session in dataset.split("test"):
        for number, (turn, triplet) in enumerate(zip(session.turns, session.triplets, strict=True), start=1):
            key, target = (session.category, *triplet), triplet[2]
            if turn.reference == NO_IMAGE or target not in members.get(session.category, ()):
                outside += 1
            elif key not in found:
                name = session.id if len(session.turns) == 1 else f"{session.id}#{number}"
                found[key] = session.model_copy(update={"id": name, "turns": (turn,), "target": target})
    return tuple(found.values()), outside
