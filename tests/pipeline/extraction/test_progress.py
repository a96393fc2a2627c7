"""What a user sees while it runs, and the bounded window behind it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.schema import Dataset
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.prefetch import in_order
from pipeline.extraction.progress import Lines, Live, Meter, Progress, line, make_progress
from pipeline.extraction.run import extract

Load = Callable[..., Extractor]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_kind_of_display_follows_the_stream() -> None:
    assert isinstance(make_progress("auto", io.StringIO()), Lines)
    assert isinstance(make_progress("auto", Terminal()), Live)
    assert type(make_progress("silent", Terminal())) is Progress
    mine = Lines(io.StringIO(), 1.0)
    assert make_progress(mine) is mine


def test_a_line_says_rows_failures_rate_time_left_and_the_slowest_stage() -> None:
    meter = Meter(workers=2, total=3000, done=1198, failed=2, now="image", started=time.perf_counter() - 100)
    meter.add("decode", 50.0)
    meter.add("model", 30.0)
    assert meter.slowest == "model"  # two workers shared the 50 s
    assert 11.9 < meter.rate < 12.1 and meter.eta == pytest.approx(150, rel=0.01)
    text = line(meter)
    for part in ("image", "1,200/3,000 rows", "2 failed", "12.0 rows/s", "2:30 left", "slowest: model"):
        assert part in text
    assert "no rows yet after 0:00" in line(Meter(total=5)) and line(Meter()) == "starting"
    assert "1:23:20 left" in line(Meter(total=6000, done=1000, started=time.perf_counter() - 1000))


def test_heartbeat_lines_come_while_a_batch_is_slow() -> None:
    out = io.StringIO()
    lines = Lines(out, 0.02)
    lines.start(Meter(total=10, now="text"))
    deadline = time.monotonic() + 30
    while out.getvalue().count("\n") < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    lines.stop()
    said = out.getvalue()
    assert said.count("extract: text") >= 3 and "0/10 rows" in said
    time.sleep(0.1)
    assert out.getvalue() == said  # it stopped


def test_live_display_and_a_short_silent_job(
    load: Load, clip_folder: Path, dataset: Dataset, tmp_path: Path, capfd
) -> None:
    out = Terminal()
    extract(dataset, load("clip", clip_folder), tmp_path / "a", progress=Live(out), batch_size=4)
    assert "rows" in out.getvalue() and "slowest" in out.getvalue()
    capfd.readouterr()
    extract(dataset, load("clip", clip_folder), tmp_path / "b", batch_size=4)  # no terminal, and over in no time
    assert capfd.readouterr() == ("", "")


def test_the_window_is_bounded_and_the_order_kept() -> None:
    begun, lock = [], threading.Lock()

    def work(n: int) -> int:
        with lock:
            begun.append(n)
        time.sleep(0.001 * (n % 3))
        return n * n

    taken = 0
    for n, square in in_order(work, range(60), workers=3, ahead=5):
        assert square == n * n and n == taken
        with lock:
            assert len(begun) <= taken + 6
        taken += 1
    assert taken == 60
    assert [r for _, r in in_order(work, range(4), workers=0, ahead=5)] == [0, 1, 4, 9]


def test_leaving_early_ends_the_workers() -> None:
    before = threading.active_count()
    running = in_order(lambda n: n, range(10_000), workers=4, ahead=8)
    next(running)
    running.close()
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda n: 1 // n, [1, 0, 1], workers=2, ahead=2))
