"""Which attribute values each turn of a session asked for, where a dataset knows it exactly."""

from __future__ import annotations

from manifests.schema import Dataset, RunSpec

Request = dict[str, str]  # field -> the value asked for; "none" asks for its absence


def known_requests(spec: RunSpec) -> dict[str, tuple[Request, ...]] | None:
    """Session id -> what each of its turns asked for; None where only the words are known.

    The demo's users are generated, so what they meant is on record: the same seed and sizes tell the same stories.
    """
    if spec.dataset.name != "demo":
        return None
    from manifests.datasets.demo import DemoOptions
    from manifests.datasets.demo.catalogue import TEST, TRAIN, Size, build_catalogue

    options = DemoOptions.model_validate(spec.dataset.options)
    catalogue = build_catalogue(
        options.seed,
        Size(options.train_families, TRAIN.sessions, TRAIN.garments),
        Size(options.test_families, TEST.sessions, TEST.garments),
    )
    return {name: story.requests for name, story in catalogue.stories.items()}


def meets(dataset: Dataset, image: str, request: Request) -> bool:
    """Whether an image has every value asked for."""
    found = dataset.attributes.get(image, {})
    return all(
        (value in found.get(field, ())) if value != "none" else not found.get(field) for field, value in request.items()
    )
