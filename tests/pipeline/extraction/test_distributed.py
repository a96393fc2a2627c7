"""Extraction on a real Dask cluster on loopback: the same store for any number of workers, and when some are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cache import Store
from manifests.schema import Component, Dataset
from pipeline.core.cluster import WorkerError, claim_gpu
from pipeline.extraction import worker as workers
from pipeline.extraction.distributed import Cluster, ClusterError, _numbers, cluster_for, portable
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.run import TooManyFailures
from pipeline.extraction.work import ShardTask

from .conftest import build_dataset, picture, save_clip, spec_of
from .helpers import ROOT, rows_by_key, run, shards_of, store_in, texts_of

pytest.importorskip("distributed", reason="pip install 'dask[distributed]'")
Load = Callable[..., Extractor]


@pytest.fixture(scope="module")
def cluster(clip_folder: Path) -> Iterator[Cluster]:
    """Two workers that answer over TCP and share this process: they start at once."""
    from distributed import LocalCluster

    spec = spec_of("clip", model=str(clip_folder), store_dtype="float32")
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            processes=False,
            host="127.0.0.1",
            protocol="tcp://",
            dashboard_address=None,
        ) as cluster,
        cluster_for(spec, "cpu", scheduler=cluster.scheduler_address) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def processes(clip_folder: Path) -> Iterator[Cluster]:
    """Two worker processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])))
        with cluster_for(spec_of("clip", model=str(clip_folder), store_dtype="float32"), "cpu", local=2) as found:
            yield found


def build_world(root: Path, size: tuple[int, int]) -> Dataset:
    """48 images, two of them spoilt, and more texts."""
    data = build_dataset(root, images=48, sessions=20)
    for n in range(48):
        picture(n, size).save(root / f"i{n:03}.jpg", quality=90)
    (root / "i009.jpg").write_bytes(b"no image")
    (root / "i020.jpg").write_bytes((root / "i021.jpg").read_bytes()[:300])
    return data


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build_world(tmp_path_factory.mktemp("world") / "images", (120, 90))


@pytest.fixture(scope="module")
def large_world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images so large that a shard of eight takes a while."""
    return build_world(tmp_path_factory.mktemp("large") / "images", (900, 1100))


@pytest.fixture(scope="module")
def local_store(load: Load, clip_folder: Path, world: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the world."""
    return run(world, load("clip", clip_folder), tmp_path_factory.mktemp("local")).path


@pytest.fixture(scope="module")
def large_store(load: Load, clip_folder: Path, large_world: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(large_world, load("clip", clip_folder), tmp_path_factory.mktemp("local")).path


def outcomes(path: Path) -> set[tuple[str, str, str]]:
    return {(f.item, f.stage, f.reason) for f in Store.open(path).failures()}


def assert_same_rows(path: Path, other: Path) -> None:
    one, two = Store.open(path), Store.open(other)
    for table in ("image", "text"):
        first, second = rows_by_key(one, table), rows_by_key(two, table)
        assert first.keys() == second.keys() and all((first[k] == second[k]).all() for k in first)


def test_the_store_is_the_local_one_and_every_item_is_encoded_once(
    cluster: Cluster, load: Load, clip_folder: Path, world: Dataset, local_store: Path, tmp_path: Path
) -> None:
    coordinator = load("clip", clip_folder)
    report = run(world, coordinator, tmp_path, cluster=cluster)
    assert shards_of(report.path) == shards_of(local_store)
    assert outcomes(report.path) == outcomes(local_store) and len(outcomes(report.path)) == 2
    assert coordinator.calls == 0 and sum(cluster.calls.values()) == report.extracted == 46 + len(texts_of(world))
    ledgers = [
        (path / "ledger.jsonl").read_text().count("truncated to the maximum length")
        for path in (report.path, local_store)
    ]
    assert report.cut == ledgers[0] == ledgers[1] > 0
    again = run(world, coordinator, tmp_path, cluster=cluster)
    assert again.extracted == 0 and shards_of(report.path) == shards_of(local_store)


@pytest.mark.parametrize("begins", ["cluster", "one process"])
def test_resume_by_another_number_of_workers(
    cluster: Cluster, load: Load, clip_folder: Path, world: Dataset, local_store: Path, tmp_path: Path, begins: str
) -> None:
    """What stops at the second failure is ended the other way: the bytes do not tell."""
    first, second = ({"cluster": cluster}, {}) if begins == "cluster" else ({"workers": 0}, {"cluster": cluster})
    extractor = load("clip", clip_folder)
    with pytest.raises(TooManyFailures):
        run(world, extractor, tmp_path, max_failures=1, **first)
    assert Store.open(store_in(tmp_path)).tables["image"].rows > 0  # all of them, where the workers were ahead
    report = run(world, extractor, tmp_path, **second)
    assert_same_rows(report.path, local_store)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_shard(
    processes: Cluster, load: Load, clip_folder: Path, large_world: Dataset, large_store: Path, tmp_path: Path
) -> None:
    client, killed = processes.client, []
    pids = client.run(os.getpid)

    def kill_one() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not killed:
            for worker, running in client.call_stack().items():
                if any(str(key).startswith("make_shard") for key in running):  # it is in the middle of one now
                    os.kill(pids[worker], signal.SIGKILL)
                    killed.append(pids[worker])
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    report = run(large_world, load("clip", clip_folder), tmp_path, cluster=processes)
    killer.join()
    assert killed and shards_of(report.path) == shards_of(large_store)
    assert outcomes(report.path) == outcomes(large_store)
    assert report.workers
    assert [n for n in report.notes if "ended or lost its connection: its shards are computed by the others" in n]
    client.wait_for_workers(2, timeout=240)
    assert killed[0] not in client.run(os.getpid).values()


@pytest.mark.slow
def test_local_workers_may_have_decoding_processes(
    processes: Cluster, load: Load, clip_folder: Path, tmp_path: Path
) -> None:
    data, how = build_dataset(tmp_path / "images", images=64), {"shard_rows": 64, "workers": 2}
    report = run(data, load("clip", clip_folder), tmp_path / "cluster", cluster=processes, **how)
    assert report.notes == []  # no worker had to decode in threads
    assert shards_of(report.path) == shards_of(run(data, load("clip", clip_folder), tmp_path / "here", **how).path)


def test_workers_of_one_machine_share_its_cpus(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask.system.cpu_count", lambda: 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 48)
    setting = cluster.setting({}, tmp_path, None, None)
    assert setting.sharing == 2 and workers._share(setting, torch.device("cpu")) == 8
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)  # two workers so far, six to come
    assert workers._share(setting, torch.device("cuda")) == 8


def test_failures_stop_a_cluster_s_job_early(
    cluster: Cluster, load: Load, clip_folder: Path, world: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(TooManyFailures, match="1 items failed, more than --max-failures 0"):
        run(world, load("clip", clip_folder), tmp_path, cluster=cluster, max_failures=0)
    assert Store.open(store_in(tmp_path)).tables["image"].rows >= 15
    report = run(world, load("clip", clip_folder), tmp_path, cluster=cluster)
    assert report.tables["image"].extracted + report.tables["image"].reused == 46


def test_a_cluster_by_its_address_and_its_own_batch_size(
    cluster: Cluster, load: Load, clip_folder: Path, world: Dataset, local_store: Path, tmp_path: Path
) -> None:
    address = cluster.client.scheduler.address
    assert address.startswith("tcp://127.0.0.1:")
    spec = spec_of("clip", model=str(clip_folder), store_dtype="float32")
    with cluster_for(spec, "cpu", scheduler=address) as found:
        report = run(world, load("clip", clip_folder), tmp_path, cluster=found, batch_size="auto")
    settings = Store.open(report.path).execution[-1]["settings"]
    assert settings["batch_size"] == 64 and settings["device"] == "cpu"  # too small a job to measure
    assert set(shards_of(report.path)) == set(shards_of(local_store))


def test_a_worker_with_another_model_or_no_store_is_refused(
    cluster: Cluster, load: Load, clip_folder: Path, tmp_path: Path
) -> None:
    data = build_dataset(tmp_path / "images")
    other = save_clip(tmp_path / "clip", seed=5)
    mixed = Cluster(cluster.client, portable(spec_of("clip", model=str(other), store_dtype="float32")), "cpu")
    with pytest.raises(ClusterError, match=r"differs from the coordinator's .*weights"):
        run(data, load("clip", clip_folder), tmp_path / "stores", cluster=mixed)
    extractor = load("clip", other)
    setting = mixed.setting(extractor.semantic(), tmp_path / "nowhere", data.images_root, 1)
    with pytest.raises(ClusterError, match=r"nowhere is not there for the worker .*shared by all machines"):
        mixed.batch_sizes(setting, {})


def test_no_scheduler_at_the_address() -> None:
    spec = spec_of("clip", model="x")
    with (
        pytest.raises(ClusterError, match="no Dask scheduler answers at 'nonsense://1'"),
        cluster_for(spec, "cpu", "nonsense://1"),
    ):
        pass


def test_shard_numbers_follow_each_table_s_own() -> None:
    tasks = [ShardTask(t, []) for t in ("image", "image", "text", "text", "text")]
    assert _numbers(tasks, {"image": 7, "text": 0}.__getitem__) == [7, 8, 0, 1, 2]


def test_local_folders_travel_as_absolute_paths(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip_folder.parent)
    values = portable(spec_of("clip", model=clip_folder.name, revision="main"))
    assert values["extractor"]["model"] == str(clip_folder.resolve()) and values["extractor"]["revision"] == "main"
    assert Component.model_validate(values["extractor"]).name == "clip"


CLAIM = """
import sys
from pathlib import Path
from pipeline.core.cluster import claim_gpu
print(claim_gpu(2, Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_every_worker_process_takes_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    other = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline().strip() == "cuda:0"
    assert claim_gpu(2, tmp_path) == "cuda:1"
    with pytest.raises(WorkerError, match=r"all 2 GPUs of .* are held by other workers"):
        claim_gpu(2, tmp_path)
    other.communicate("")
    assert claim_gpu(2, tmp_path) == "cuda:0"  # its process has ended
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    assert claim_gpu(2, tmp_path) == "cuda:0"  # another GPU of the machine


JOB = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
if __name__ == "__main__":
    from pipeline.extraction.distributed import cluster_for
    from pipeline.extraction.extractors import load_extractor
    from pipeline.extraction.run import extract
    from tests.pipeline.extraction.conftest import build_dataset, spec_of

    images, model, stores = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    spec = spec_of("clip", model=model, store_dtype="float32")
    try:
        with cluster_for(spec, "cpu", local=1) as cluster:
            extract(build_dataset(images, images=48, sessions=20), load_extractor(spec, "cpu"), stores, batch_size=4,
                    shard_rows=8, progress="silent", cluster=cluster)
    except BaseException as error:
        print(error)
        sys.exit(getattr(error, "exit_code", 1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_coordinator_stopped_in_the_middle(
    load: Load, clip_folder: Path, large_world: Dataset, large_store: Path, tmp_path: Path, how: str
) -> None:
    """SIGKILL of the coordinator alone, Ctrl-C in the whole process group; one process ends the job."""
    script = tmp_path / "job.py"
    script.write_text(JOB)
    assert large_world.images_root is not None
    process = subprocess.Popen(
        [sys.executable, str(script), str(large_world.images_root), str(clip_folder), str(tmp_path / "stores")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 240
    while len(list((tmp_path / "stores").glob("tiny/*/image-*.h5"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, "the job ended, or never began"
        time.sleep(0.01)
    if how == "SIGKILL":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == {"SIGKILL": -signal.SIGKILL, "SIGINT": 130}[how]
    assert how == "SIGKILL" or "run the same command again to resume" in said
    report = run(large_world, load("clip", clip_folder), tmp_path / "stores")
    assert report.reused >= 14
    assert_same_rows(report.path, large_store)
    assert how == "SIGINT" or shards_of(report.path) == shards_of(large_store)
