"""Single-turn recall of a fitted model, computed from images and texts: R@10 and R@50, as in single-turn papers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from manifests.schema import Dataset, Session
from pipeline.evaluation.metrics import recall
from pipeline.evaluation.ranking import ranks
from pipeline.extraction.extractors._fittable import Fittable
from pipeline.extraction.fitting.triplets import Loader, triplets_of

KS = (10, 50)


@torch.inference_mode()
def single_turn(
    extractor: Fittable, loader: Loader, dataset: Dataset, sessions: Sequence[Session], alpha: float, batch_size: int
) -> dict[str, float]:
    """Return R@K in percent over the triplets of ``sessions``, averaged over categories, and their count.

    Candidates: the category's gallery of the sessions' split, including the reference; ties count against the model.
    """
    extractor.network.eval()
    found: dict[str, list[float]] = {}
    counted = 0
    triplets = triplets_of(sessions)
    for category in dict.fromkeys(t.category for t in triplets):
        mine = [t for t in triplets if t.category == category]
        gallery = dataset.gallery(category, sessions[0].split).images
        ids, rows = [], []
        for some, made in loader.images(list(dict.fromkeys([*gallery, *(t.target for t in mine)])), batch_size):
            ids += some
            rows.append(extractor.targets(made).float().cpu().numpy())
        place = {image: n for n, image in enumerate(ids)}
        mine = [t for t in mine if t.target in place and loader.image(t.reference) is not None]
        if not mine:
            continue
        parts = [range(start, min(start + batch_size, len(mine))) for start in range(0, len(mine), batch_size)]
        queries = [
            extractor.queries(batch.references, batch.texts, alpha).float().cpu().numpy()
            for batch in loader.batches(mine, parts)
        ]
        rank = ranks(np.concatenate(queries), np.concatenate(rows), np.array([place[t.target] for t in mine]))
        counted += len(mine)
        for k in KS:
            found.setdefault(f"R@{k}", []).append(recall(rank, k))
    return {name: float(np.mean(values)) for name, values in found.items()} | {"triplets": float(counted)}
