"""Ray on a cluster of two nodes on this machine: same tables, and what a loss costs."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from ray.cluster_utils import Cluster

from tests import tiny
from visdepth_utils import token_kl, truncation_sweep
from visdepth_utils.models.vlm import VLM
from visdepth_utils.runs import measuring_code, ray_executor
from visdepth_utils.runs.records import read_provenance
from visdepth_utils.runs.run import Run, open_run

SAMPLES = [tiny.sample(i) for i in range(8)]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one CPU each; the driver joins them by RAY_ADDRESS."""
    made = Cluster(
        initialize_head=True, head_node_args={**NODE, "include_dashboard": False}, connect=False
    )
    made.add_node(**NODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", made.address)
        with ray_executor.serving():
            yield made
    made.shutdown()


@pytest.fixture
def on_ray(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("VISDEPTH_ENGINE", "ray")
    monkeypatch.setenv("VISDEPTH_RAY", '{"num_actors": 2}')
    return cluster


@pytest.fixture
def run(llava_path: Path, tmp_path: Path) -> Run:
    return open_run(model=str(llava_path), n_samples=8, out_dir=tmp_path / "run")


def tables(run: Run) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run.folder / "tables").glob("*.parquet")}


def measured(log: Path) -> Counter[str]:
    """How often each shard was begun."""
    return Counter(log.read_text().split())


def test_tables_are_those_of_a_local_run(
    llava: VLM, run: Run, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch.get_num_threads() == 1, "a worker with one CPU has one thread: set OMP_NUM_THREADS"
    settings = {"model": run.settings["model"], "n_samples": 8}
    other = open_run(**settings, out_dir=tmp_path / "other")

    def measure(where: Run) -> pd.DataFrame:
        frames = [
            where.by_block(
                f"sweep_{mode}",
                SAMPLES,
                lambda block, progress, mode=mode: truncation_sweep(
                    llava, block, mode=mode, max_new_tokens=4, progress=progress
                ),
                key={"mode": mode},
                size=2,
            )
            for mode in ("remove", "freeze")
        ]
        kl = where.by_block("kl", SAMPLES, lambda b, p: token_kl(llava, b, progress=p), size=3)
        return pd.concat([*frames, kl], ignore_index=True)

    expected = measure(run)
    monkeypatch.setenv("VISDEPTH_ENGINE", "ray")
    monkeypatch.setenv("VISDEPTH_RAY", '{"num_actors": 2}')
    found = measure(other)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert tables(other) == tables(run)
    assert len(tables(run)) == 4 + 4 + 3
    other.note()
    assert read_provenance(other.folder)["engine"]["num_actors"] == 2
    assert read_provenance(run.folder)["engine"] == {"name": "local"}


def test_a_killed_worker_costs_the_shard_it_was_in(
    run: Run, tmp_path: Path, on_ray: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"

    def measure(block: list, _progress: object) -> pd.DataFrame:
        name = block[0].id
        first = name not in (log.read_text().split() if log.exists() else ())
        with log.open("a") as out:
            out.write(name + "\n")
        time.sleep(0.1)
        if name == "s4" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        return pd.DataFrame({"sample": [sample.id for sample in block]})

    frame = run.by_block("step", SAMPLES, measure, size=2)
    assert frame["sample"].tolist() == [sample.id for sample in SAMPLES]
    assert measured(log) == {"s0": 1, "s2": 1, "s4": 2, "s6": 1}
    out = capsys.readouterr().out
    assert "step: a worker was lost (" in out
    assert "samples 's4' to 's5' will be measured again" in out


def test_a_poisoned_shard_is_named_and_the_rest_is_kept(
    run: Run, tmp_path: Path, on_ray: Cluster
) -> None:
    log = tmp_path / "log"
    log.touch()

    def measure(block: list, _progress: object, bad: str = "s2") -> pd.DataFrame:
        with log.open("a") as out:
            out.write(block[0].id + "\n")
        if block[0].id == bad:
            raise ValueError("this picture is broken\nand more")
        return pd.DataFrame({"sample": [sample.id for sample in block]})

    with pytest.raises(RuntimeError) as caught:
        run.by_block("step", SAMPLES, measure, size=2)
    assert str(caught.value) == (
        "step: 1 shards failed 3 times: samples 's2' to 's3': ValueError: this picture is broken; "
        "the other 3 are kept, a second run tries only these"
    )
    assert measured(log) == {"s0": 1, "s2": 3, "s4": 1, "s6": 1}
    frame = run.by_block("step", SAMPLES, lambda b, p: measure(b, p, bad=""), size=2)
    assert frame["sample"].tolist() == [sample.id for sample in SAMPLES]
    assert measured(log) == {"s0": 1, "s2": 4, "s4": 1, "s6": 1}


def test_workers_with_other_code_are_refused(
    run: Run, on_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring_code, "code_version", lambda: "edited")
    with pytest.raises(ValueError, match="measuring code or libraries are of another version"):
        run.by_block("step", SAMPLES, lambda b, p: pd.DataFrame(), size=2)


def test_a_removed_node_costs_the_shard_in_flight(
    run: Run, tmp_path: Path, on_ray: Cluster
) -> None:
    """Last: it leaves one node."""
    log, started = tmp_path / "log", tmp_path / "started"
    head = on_ray.head_node.node_id

    def measure(block: list, _progress: object) -> pd.DataFrame:
        import ray

        with log.open("a") as out:
            out.write(block[0].id + "\n")
        if ray.get_runtime_context().get_node_id() != head:
            started.touch()
            time.sleep(60)  # the node goes meanwhile
        # Slow enough that the other node is sure to get a shard.
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return pd.DataFrame({"sample": [sample.id for sample in block]})

    def remove() -> None:
        while not started.exists():
            time.sleep(0.05)
        on_ray.remove_node(next(iter(on_ray.worker_nodes)), allow_graceful=False)

    thread = threading.Thread(target=remove, daemon=True)
    thread.start()
    frame = run.by_block("step", SAMPLES, measure, size=2)
    thread.join(timeout=60)
    assert frame["sample"].tolist() == [sample.id for sample in SAMPLES]
    counts = measured(log)
    assert sorted(counts) == ["s0", "s2", "s4", "s6"]
    assert sum(counts.values()) == 4 + 1, counts
