"""The engine without a cluster: how it is chosen, and models that travel as recipes."""

import contextlib
import json
import pickle
import socket
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests import tiny
from visdepth_utils.data.samples import describe
from visdepth_utils.models import load
from visdepth_utils.models.load import load_vlm
from visdepth_utils.models.vlm import VLM
from visdepth_utils.runs import engine
from visdepth_utils.runs.engine import RayOptions, chosen_engine, ray_options
from visdepth_utils.runs.executor import map_shards


def test_a_model_is_pickled_as_its_recipe_and_loaded_once(llava_path: Path) -> None:
    vlm = load_vlm(llava_path, dtype=torch.float32, random_init="decoder", seed=3)
    data = pickle.dumps([vlm, vlm])
    assert len(data) < 2000
    one, two = pickle.loads(data)
    assert one is two is pickle.loads(data)[0]
    assert one is not vlm
    assert (one.name, one.weights_hash, one.dtype) == (vlm.name, vlm.weights_hash, vlm.dtype)
    for ours, theirs in zip(one.model.parameters(), vlm.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    other = pickle.loads(pickle.dumps(load_vlm(llava_path)))
    assert other is not one
    assert other.weights_hash != one.weights_hash


def test_a_recipe_names_the_folder_absolutely(
    llava_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llava_path.parent)
    recipe = load_vlm(llava_path.name, device="cpu").recipe
    assert recipe.where == str(llava_path.resolve())
    assert dict(recipe.options) == {"device": "cpu"}


def test_a_model_that_load_vlm_did_not_make_cannot_be_sent(llava: VLM) -> None:
    own = VLM(
        **{name: getattr(llava, name) for name in VLM.__dataclass_fields__ if name != "recipe"}
    )
    with pytest.raises(ValueError, match="cannot be sent to another process: only a model made by"):
        pickle.dumps(own)


def test_other_weights_in_the_same_place_are_refused(tmp_path: Path) -> None:
    tiny.llava(tmp_path / "m", seed=0)
    data = pickle.dumps(load_vlm(tmp_path / "m"))
    tiny.llava(tmp_path / "m", seed=1)
    load._LOADED.clear()
    with pytest.raises(ValueError, match="holds other weights here than where"):
        pickle.loads(data)


def test_the_engine_is_local_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISDEPTH_ENGINE", raising=False)
    assert chosen_engine() == "local"
    assert engine.facts() == {"name": "local"}
    monkeypatch.setenv("VISDEPTH_ENGINE", "spark")
    with pytest.raises(ValueError, match=r"unknown engine 'spark' \(VISDEPTH_ENGINE\): use local"):
        chosen_engine()


def test_ray_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISDEPTH_ENGINE", "ray")
    monkeypatch.setitem(sys.modules, "ray", None)  # what an import finds is an ImportError
    with pytest.raises(ValueError, match=r"Ray, which is not installed: pip install .*\[ray\]"):
        chosen_engine()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[2]", r"VISDEPTH_RAY='\[2\]': give JSON like"),
        ('{"actors": 2}', "unknown option 'actors' in VISDEPTH_RAY"),
        ('{"num_actors": 0}', "num_actors=0 must be a whole number of at least 1"),
        ('{"num_actors": 1.5}', "num_actors=1.5 must be a whole number"),
        ('{"num_gpus": "all"}', "num_gpus='all' must be a number of at least 0"),
        ('{"num_cpus": true}', "num_cpus=True must be a number"),
        ('{"num_cpus": null}', "num_cpus=None must be a number"),
        ('{"wait_s": NaN}', "wait_s=nan must be a number"),
    ],
)
def test_bad_options_are_named_in_one_line(
    text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISDEPTH_RAY", text)
    with pytest.raises(ValueError, match=message) as caught:
        ray_options()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, r"Ray did not start on this machine \(The current node timed out\): run it again"),
        ("auto", r"no Ray at RAY_ADDRESS='auto' \(The current node timed out\)"),
        ("local", r"Ray did not start on this machine"),
        ("ray://head:10001", "is a client address: run this on a node of the cluster"),
        ("head", "RAY_ADDRESS='head' is no address: give HOST:6379"),
        ("head:port", "RAY_ADDRESS='head:port' is no address: give HOST:6379"),
        ("127.0.0.1:70000", "no Ray at RAY_ADDRESS='127.0.0.1:70000'"),
    ],
)
def test_a_ray_that_cannot_be_had_is_one_line(
    address: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visdepth_utils.runs import ray_executor

    def fails(**_options: object) -> None:
        raise Exception("The current node timed out\nand a page more")

    monkeypatch.setattr(ray_executor.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_executor.ray, "init", fails)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=message) as caught:
        ray_executor.connect()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "Connection refused"),  # nothing listens
        (b"", "timed out"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there is no Ray"),
        (bytes((0, 0, 6, 4, 0, 0, 0, 0, 0)), ""),  # as a server of HTTP/2 begins
    ],
)
def test_an_address_is_probed_before_ray_tries_it_for_long(
    answer: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visdepth_utils.runs import ray_executor

    tried: list[str] = []
    monkeypatch.setattr(ray_executor.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_executor.ray, "init", lambda address, **_: tried.append(address))
    monkeypatch.setattr(engine, "PROBE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "127.0.0.1:{1}".format(*server.getsockname())

        def serve() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as client:
                client.sendall(answer)
                client.recv(1000)
                client.recv(1000)  # until the other side ends

        if answer is None:
            server.close()
        else:
            threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", address)
        if message:
            expected = rf"no Ray at RAY_ADDRESS='{address}' \({message}\): start it"
            with pytest.raises(ValueError, match=expected):
                ray_executor.connect()
        else:
            ray_executor.connect()
    assert tried == ([] if message else [address])


@pytest.mark.parametrize("asked", [{"num_gpus": 1}, {"num_gpus": 0.5}, {"num_cpus": 3}])
def test_a_worker_that_a_local_ray_can_never_start_is_refused(
    asked: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from visdepth_utils.runs import ray_executor

    ended: list[bool] = []
    monkeypatch.setattr(ray_executor.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_executor.ray, "init", lambda **_: None)
    monkeypatch.setattr(ray_executor.ray, "shutdown", lambda: ended.append(True))
    monkeypatch.setattr(ray_executor.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("VISDEPTH_RAY", json.dumps(asked))
    (name,) = asked
    with pytest.raises(ValueError, match=f"asks for {name}={asked[name]} for each worker, this"):
        ray_executor.connect()
    assert ended == [True]
    monkeypatch.setenv("VISDEPTH_RAY", '{"num_cpus": 2, "num_actors": 8, "num_gpus": 0}')
    ray_executor.connect()


def test_options_have_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISDEPTH_RAY", raising=False)
    assert ray_options() == RayOptions()
    monkeypatch.setenv("VISDEPTH_RAY", '{"num_actors": null, "num_gpus": 0.5}')
    assert ray_options() == RayOptions(num_gpus=0.5)


def test_a_local_shard_is_asked_for_when_it_can_be_measured() -> None:
    events: list[str] = []

    def shards():  # noqa: ANN202
        for start in (0, 2):
            events.append(f"asked {start}")
            yield start, [tiny.sample(start), tiny.sample(start + 1)]

    def measure(block, progress):  # noqa: ANN001, ANN202
        progress(1, 2, "label")
        return pd.DataFrame({"sample": [sample.id for sample in block]})

    map_shards(
        "step",
        shards(),
        measure,
        lambda start, frame: events.append(f"kept {start}: {len(frame)}"),
        lambda done, total, label: events.append(f"{label} {done}/{total}"),
        4,
    )
    assert events == ["asked 0", "label 1/4", "kept 0: 2", "asked 2", "label 3/4", "kept 2: 2"]


def test_a_shard_is_described_by_its_samples() -> None:
    samples = [tiny.sample(i) for i in range(3)]
    assert describe(samples) == "samples 's0' to 's2'"
    assert describe(samples[:1]) == "sample 's0'"
