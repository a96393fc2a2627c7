"""Attribute values requested by each turn of a session, for datasets where they are known exactly."""

from __future__ import annotations

from manifests.datasets.demo import DemoOptions, catalogue_of
from manifests.schema import Dataset, RunSpec

Request = dict[str, str]  # field -> requested value; "none" requests its absence


def known_requests(spec: RunSpec) -> dict[str, tuple[Request, ...]] | None:
    """Return session id -> the requests of its turns; None when only the words are known.

    The demo's users are generated, so their requests are known: the same options give the same sessions.
    """
    if spec.dataset.name != "demo":
        return None
    catalogue = catalogue_of(DemoOptions.model_validate(spec.dataset.options))
    return {name: story.requests for name, story in catalogue.stories.items()}


def meets(dataset: Dataset, image: str, request: Request) -> bool:
    """Return whether an image has every requested value."""
    found = dataset.attributes.get(image, {})
    return all(
        (value in found.get(field, ())) if value != "none" else not found.get(field) for field, value in request.items()
    )
