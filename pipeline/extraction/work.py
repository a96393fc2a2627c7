"""Work of an extraction: the distinct images, texts and pairs of a dataset, as tasks of shards and batches.

The division depends only on the plan and the batch size. A task therefore gives the same batches and bit-identical rows
when it runs overlapped, sequentially, on another machine or with any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache import Failure
from manifests.errors import ManifestError, Problem
from manifests.identity import NO_IMAGE_KEY, caption_key, dialog_key, pair_key, text_key
from manifests.schema import NO_IMAGE, Dataset, Session
from pipeline.core.image_files import ItemError, image_keys
from pipeline.extraction.extractors.base import Extractor

Hook = Callable[[], None]  # called between steps of a job; it may raise to stop it


@dataclass(frozen=True, slots=True)
class Item:
    """Input of one row. ``names``: its names in the ledger (image ids, the text, or both).

    ``image``: content key of the image; ``file`` or ``caption``: its content; ``text``: the text. ``turns``: for a whole
    dialog, the items of its turns; ``image``, ``file`` and ``text`` are then those of its first turn.
    """

    key: bytes
    names: tuple[str, ...]
    image: bytes | None = None
    file: str | None = None
    caption: str | None = None
    text: str | None = None
    turns: tuple[Item, ...] = ()


@dataclass(frozen=True)
class ItemFailure:
    """Failed item. ``stage``: "read", "decode", "tokenise" or "encode"."""

    item: Item
    stage: str
    reason: str


def catalogue_of(
    dataset: Dataset, extractor: Extractor, digests: Path | None, workers: int, remember: bool
) -> tuple[dict[str, Item], dict[str, str]]:
    """Return (image id -> item, image id -> failure of an image without content).

    ``digests``: the cache file of image digests, updated only if ``remember``. Raises ManifestError when the dataset
    has nothing that ``extractor`` reads, or text-only turns with a joint model, which needs an image for a query.
    """
    if dataset.text_only and "query" in extractor.tables:
        what = f"extractor '{extractor.name}' is a joint model and {dataset.name} has turns without an image"
        raise ManifestError([Problem(dataset.name, "", what, "use a dual encoder, such as clip or caption")])
    if dataset.dialogs and not extractor.reads_dialogs:
        what = f"extractor '{extractor.name}' does not encode a dialog as one query, as dialogs = true asks"
        raise ManifestError([Problem(dataset.name, "", what, "use mllm, or leave out dialogs and model st_history")])
    if extractor.reads == "caption":
        return _captions(dataset, extractor)
    if dataset.images_root is None or not any(image.file for image in dataset.images.values()):
        what = f"extractor '{extractor.name}' reads image files and this dataset has none"
        fix = "name the images folder in [dataset], or use the caption extractor"
        raise ManifestError([Problem(dataset.name, "", what, fix)])
    root = dataset.images_root.resolve()
    if not root.is_dir():
        raise ManifestError([Problem(dataset.name, "", f"the images folder {root} does not exist", "check the path")])
    found: dict[str, Item] = {}
    bad = {i.id: "the dataset names no file for it" for i in dataset.images.values() if not i.file}
    for image, key in image_keys(dataset.images.values(), root, digests, workers, remember).items():
        if isinstance(key, ItemError):
            bad[image] = key.reason
        else:
            found[image] = Item(key, (image,), key, file=dataset.images[image].file)
    return found, bad


def _captions(dataset: Dataset, extractor: Extractor) -> tuple[dict[str, Item], dict[str, str]]:
    texts = {image.id: (extractor.standin(image, dataset) or "").strip() for image in dataset.images.values()}
    if texts and not any(texts.values()):
        what = f"extractor '{extractor.name}' reads captions and no image of this dataset has one"
        fix = "name the captions in [dataset], or use an extractor that reads pixels"
        raise ManifestError([Problem(dataset.name, "", what, fix)])
    keys = {i: caption_key(text) for i, text in texts.items() if text}
    found = {i: Item(key, (i,), key, caption=texts[i]) for i, key in keys.items()}
    return found, {i: "it has no caption to stand in for it" for i, text in texts.items() if not text}


def bound_keys(dataset: Dataset, sources: Mapping[str, Item]) -> dict[str, bytes]:
    """Return image id -> content key of the images with content; with text-only turns, also that of no image."""
    keys = {image_id: source.key for image_id, source in sources.items()}
    return keys | ({NO_IMAGE: NO_IMAGE_KEY} if dataset.text_only else {})


def requests_of(
    table: str, dataset: Dataset, sources: Mapping[str, Item], unusable: Mapping[str, str]
) -> tuple[int, dict[bytes, Item], list[Failure]]:
    """Return (number of requests, unique items by key in order of first appearance, failures without a key)."""
    if table in ("image", "target"):
        stage = "caption" if any(s.caption is not None for s in sources.values()) else "read"
        bad = [Failure(table, image_id, stage, why) for image_id, why in unusable.items()]
        return len(dataset.images), _unique(sources[i] for i in dataset.images if i in sources), bad
    queries = list(dataset.queries())
    if table == "text":
        texts = dict.fromkeys(text for _, text in queries)
        return len(queries), {key: Item(key, (t,), text=t) for t in texts for key in [text_key(t)]}, []
    chats = list(dataset.whole_dialogs())
    pairs = dict.fromkeys(queries)
    bad = [Failure(table, pair_name(i, t), "read", f"reference {i}: {unusable[i]}") for i, t in pairs if i in unusable]
    items = [_query(sources[i], i, t) for i, t in pairs if i in sources]
    items += [_dialog(c, sources) for c in chats if all(turn.reference in sources for turn in c.turns)]
    return len(queries) + len(chats), _unique(items), bad


def _dialog(session: Session, sources: Mapping[str, Item]) -> Item:
    turns = tuple(_query(sources[turn.reference], turn.reference, turn.text) for turn in session.turns)
    first, name = turns[0], f"{session.id}, last {len(turns)} turns as one dialog"
    return Item(dialog_key([t.key for t in turns]), (name,), first.image, first.file, None, first.text, turns)


def _query(source: Item, image_id: str, text: str) -> Item:
    key = pair_key(source.key, text_key(text))
    return Item(key, (pair_name(image_id, text),), source.key, source.file, source.caption, text)


def pair_name(image_id: str, text: str) -> str:
    """Return the name of a query in the ledger."""
    return f"{image_id}: {text}"


def _unique(items: Iterable[Item]) -> dict[bytes, Item]:
    """Merge items of equal key into one item that keeps all their names for the ledger."""
    first: dict[bytes, Item] = {}
    others: dict[bytes, list[str]] = {}
    for item in items:
        if item.key in first:
            others.setdefault(item.key, []).extend(item.names)
        else:
            first[item.key] = item
    for key, names in others.items():
        item = first[key]
        first[key] = Item(key, (*item.names, *names), item.image, item.file, item.caption, item.text, item.turns)
    return first


@dataclass(frozen=True)
class ShardTask:
    """A planned shard: its items, in the order of the rows to write."""

    table: str
    items: Sequence[Item]

    @property
    def by_length(self) -> bool:
        """Whether items are batched by length: true for texts, false for images and pairs."""
        return bool(self.items) and self.items[0].file is None


@dataclass(frozen=True)
class Job:
    """Unit of preparation: items ``start`` to ``stop`` of a task."""

    task: int
    start: int
    stop: int


@dataclass
class ForwardBatch:
    """A batch: positions in the task, items, and prepared parts (one sequence per part).

    ``failures``: items of the task that failed since the previous batch. ``last``: final batch of the task; it may be
    empty.
    """

    task: int
    positions: list[int] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    parts: tuple[Sequence[Any], ...] = ()
    failures: list[ItemFailure] = field(default_factory=list)
    last: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def part(self, start: int, stop: int) -> ForwardBatch:
        """Return a slice of the members, without the failures."""
        parts = tuple(p[start:stop] for p in self.parts)
        return ForwardBatch(self.task, self.positions[start:stop], self.items[start:stop], parts)


def jobs_of(tasks: Sequence[ShardTask], images: int) -> Iterator[Job]:
    """Yield jobs of ``images`` of all tasks in order; a task of texts is one job, as its batches need all lengths."""
    for number, task in enumerate(tasks):
        step = len(task.items) if task.by_length else images
        for start in range(0, len(task.items), step):
            yield Job(number, start, min(start + step, len(task.items)))


def batches_of(
    tasks: Sequence[ShardTask],
    prepared: Iterable[tuple[Job, list[Any]]],
    batch_size: int,
    collate: Callable[[Sequence[Any]], Sequence[Any]] = lambda parts: parts,
) -> Iterator[ForwardBatch]:
    """Yield batches of up to ``batch_size`` items, in order, from the jobs' prepared parts or failures.

    A batch never spans two tasks. ``collate`` receives each part of a batch's items (all images, all texts).
    """
    waiting: list[tuple[int, Item, Any]] = []
    failures: list[ItemFailure] = []
    for job, found in prepared:
        task = tasks[job.task]
        for position, parts in enumerate(found, start=job.start):
            if isinstance(parts, ItemFailure):
                failures.append(parts)
            else:
                waiting.append((position, task.items[position], parts))
        last = job.stop == len(task.items)
        if task.by_length:
            waiting.sort(key=lambda w: -len(w[2][-1]))  # longest first: a lack of memory shows early
        while len(waiting) >= batch_size or last:
            now, waiting = waiting[:batch_size], waiting[batch_size:]
            ends = last and not waiting
            parts = tuple(collate(list(column)) for column in zip(*(w[2] for w in now), strict=True))
            yield ForwardBatch(job.task, [w[0] for w in now], [w[1] for w in now], parts, failures, ends)
            failures = []
            if ends:
                break
