"""Index a catalog: its image features, composed targets and galleries, without any session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from manifests.errors import IncompleteError
from manifests.schema import Dataset, RunSpec
from pipeline.core.workspace import Workspace
from pipeline.evaluation.evaluate import load_candidates
from pipeline.jobs.stage1 import StageOne, extract_spec


@dataclass(frozen=True)
class Indexed:
    """Result of ``index_spec``. ``galleries``: name -> (searchable images, images without a feature)."""

    stage: StageOne
    galleries: dict[str, tuple[int, int]]
    next_command: str

    def as_dict(self) -> dict[str, Any]:
        found = {name: {"images": n, "without_feature": dropped} for name, (n, dropped) in self.galleries.items()}
        return {**self.stage.as_dict(), "galleries": found, "next": self.next_command}

    def text(self) -> str:
        lines = [self.stage.extraction.text()]
        for name, (n, dropped) in self.galleries.items():
            lines.append(f"gallery {name}: {n:,} images" + (f"; {dropped:,} without a feature" if dropped else ""))
        return "\n".join([*lines, f"next: {self.next_command}"])


def index_spec(spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str = "auto", **options: Any) -> Indexed:
    """Compute the missing features of the spec's images and texts; ``options`` as ``extract_spec``.

    Raises IncompleteError for a composer that must be fitted first, naming the ways to have one.
    """
    stage = extract_spec(spec, dataset, workspace, device, **options)
    if stage.next_command == spec.command("fit-composer"):
        name = spec.composer.name if spec.composer else "fusion"
        if dataset.split("train"):
            raise IncompleteError(
                f"composer '{name}' is not fitted yet: run `{stage.next_command}`, then `index` again"
            )
        raise IncompleteError(
            f"composer '{name}' is not fitted, and a catalog has no sessions to fit it on: set composer.weights to "
            'the folder of a fitted one (`fit-composer` prints it), or composer.name = "fusion", which needs none'
        )
    galleries = [g for g in dataset.galleries if g.split == "test"] or list(dataset.galleries)
    found = load_candidates(workspace.store(spec, dataset), galleries)
    counts = {name: (len(one.images), len(one.dropped)) for name, one in found.items()}
    return Indexed(stage, counts, spec.command("search", "--text", "in navy"))
