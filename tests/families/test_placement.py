"""A model spread over CPU and disk gives the numbers of the one in memory, up to rounding.

Weights from a file lie at other addresses, for which another kernel may run.
"""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from tests.families.checkpoints import CHECKPOINTS
from tests.families.findings import SAMPLES
from visdepth_utils import layer_geometry, load_vlm, substitution_grid, truncation_sweep
from visdepth_utils.measure.distillation import Distillation
from visdepth_utils.measure.interventions import truncated
from visdepth_utils.measure.patching.prefill import prefill
from visdepth_utils.measure.recovery import distill
from visdepth_utils.models import placement
from visdepth_utils.models.hooks import capture
from visdepth_utils.models.vlm import VLM

NAMES = ("llava_next", "gemma3", "qwen3_vl")  # newline vectors; tied and windows; DeepStack


@pytest.fixture(scope="module", params=NAMES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placed") / request.param
    return CHECKPOINTS[request.param].write(folder)


def half_on_disk(model: torch.nn.Module) -> dict[str, str]:
    """Every second part of a model on disk: decoder layers, embedding, head, tower, projector."""
    decoder = [name for name, part in model.named_modules() if part is model.get_decoder()][0]
    parts, alone = [], {}
    for prefix, module in (("", model), ("model.", model.model), (f"{decoder}.", None)):
        module = model.get_decoder() if module is None else module
        alone |= {f"{prefix}{name}": "cpu" for name, _ in module.named_parameters(recurse=False)}
        for name, _ in module.named_children():
            parts.append(f"{prefix}{name}")
    parts += [f"{decoder}.layers.{i}" for i in range(len(model.get_decoder().layers))]
    parts = [name for name in parts if name not in ("model", decoder, f"{decoder}.layers")]
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        alone |= {"lm_head": "cpu", f"{decoder}.embed_tokens": "cpu"}  # tied: one file for both
    return {name: ("disk", "cpu")[i % 2] for i, name in enumerate(parts)} | alone


@pytest.fixture(scope="module")
def pair(path: Path) -> tuple[VLM, VLM]:
    """The model in memory, and the same one with every second part on disk."""
    whole = load_vlm(path)
    return whole, load_vlm(path, device_map=half_on_disk(whole.model))


def test_half_of_the_weights_are_not_in_memory(pair: tuple[VLM, VLM]) -> None:
    whole, spread = pair
    held = [sum(p.device.type == "meta" for p in v.model.parameters()) for v in pair]
    assert held[0] == 0 and held[1] > 10
    assert spread.device == whole.device == torch.device("cpu")
    assert (spread.dtype, spread.weights_hash) == (whole.dtype, whole.weights_hash)


def test_every_measurement_is_the_same(pair: tuple[VLM, VLM]) -> None:
    runs = {
        "geometry": lambda v: layer_geometry(v, SAMPLES, n0=4, draws=2, n_min=3, k=2),
        "sweep": lambda v: truncation_sweep(v, SAMPLES, max_new_tokens=3),
        "physical": lambda v: truncation_sweep(
            v, SAMPLES[:1], depths=[1, 2], max_new_tokens=3, implementation="physical"
        ),
        "image grid": lambda v: substitution_grid(v, SAMPLES, stride=2, max_new_tokens=2),
        "text grid": lambda v: substitution_grid(
            v, SAMPLES, modality="text", stride=2, max_new_tokens=2
        ),
    }
    for name, run in runs.items():
        one, two = (run(vlm) for vlm in pair)
        pd.testing.assert_frame_equal(one, two, rtol=1e-4, atol=1e-5, obj=name)
    one, two = (vlm.generate(SAMPLES, 4) for vlm in pair)
    assert one == two


def test_hooks_of_ours_leave_those_of_accelerate(pair: tuple[VLM, VLM]) -> None:
    whole, spread = pair
    placed = accelerates(spread)
    enc = spread.encode(SAMPLES)
    with torch.no_grad():
        before = spread.model(**enc.inputs, use_cache=False).logits
        with truncated(spread, enc, 1):
            cut = spread.model(**enc.inputs, use_cache=False).logits
        with pytest.raises(RuntimeError, match="stop"), truncated(spread, enc, 1):
            capture(spread, enc, _stops_at(2))
        assert torch.equal(spread.model(**enc.inputs, use_cache=False).logits, before)
        with truncated(whole, enc, 1):
            torch.testing.assert_close(whole.model(**enc.inputs, use_cache=False).logits, cut)
    assert not torch.equal(cut, before)
    assert not any(layer._forward_pre_hooks for layer in spread.layers)
    assert accelerates(spread) == placed and placed


def accelerates(vlm: VLM) -> dict[str, type]:
    """Kind of accelerate's hook of each module that has one."""
    parts = vlm.model.named_modules()
    return {name: type(part._hf_hook) for name, part in parts if hasattr(part, "_hf_hook")}


def _stops_at(last: int):
    def visitor(layer: int, _state: torch.Tensor) -> None:
        if layer == last:
            raise RuntimeError("stop")

    return visitor


def test_what_is_never_fetched_is_refused(path: Path) -> None:
    whole = load_vlm(path).model
    good = half_on_disk(whole)
    single = [name for name, _ in whole.model.named_parameters(recurse=False)]
    for name in single:
        with pytest.raises(ValueError, match=f"device_map sends 'model.{name}' to disk"):
            load_vlm(path, device_map=good | {f"model.{name}": "disk"})
    if whole.get_output_embeddings().weight is whole.get_input_embeddings().weight:
        with pytest.raises(ValueError, match="tied to the input embedding"):
            load_vlm(path, device_map=good | {"lm_head": "disk"})


def test_offloaded_weights_are_not_trained(pair: tuple[VLM, VLM], tmp_path: Path) -> None:
    settings = Distillation(depth=1, steps=1, batch=2)
    with pytest.raises(ValueError, match="offloaded on CPU or disk, which cannot be trained"):
        distill(pair[1], SAMPLES, settings, tmp_path, max_new_tokens=2)


@pytest.mark.parametrize("random_init", [True, "decoder"])
def test_an_untrained_control_is_the_same_spread(pair, path: Path, random_init) -> None:
    placed = half_on_disk(pair[0].model)
    one = load_vlm(path, random_init=random_init)
    two = load_vlm(path, random_init=random_init, device_map=placed)
    assert any(p.device.type == "meta" for p in two.model.parameters())
    assert one.weights_hash == two.weights_hash != pair[0].weights_hash
    tables = [truncation_sweep(vlm, SAMPLES, max_new_tokens=2) for vlm in (one, two)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-5)


def test_a_control_that_does_not_fit_is_refused_with_the_numbers(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(placement.psutil, "virtual_memory", lambda: SimpleNamespace(available=9e4))
    with pytest.raises(MemoryError, match=r"takes 0\.\d GB, 0\.0 GB are free: .* not measured"):
        load_vlm(path, random_init="decoder")
    load_vlm(path)  # only controls are drawn in memory


def test_strategies_need_no_map(path: Path) -> None:
    auto = load_vlm(path, device_map="auto")
    assert auto.device == load_vlm(path).device
    assert auto.generate(SAMPLES, 3) == load_vlm(path).generate(SAMPLES, 3)


def test_weights_in_bfloat16_are_measured_in_float32(path: Path) -> None:
    vlm = load_vlm(path, device_map={"": "cpu"}, dtype="bfloat16")
    enc = vlm.encode(SAMPLES)
    seen: list[torch.dtype] = []
    capture(vlm, enc, lambda _, state: seen.append(state.dtype))
    assert {p.dtype for p in vlm.model.parameters()} == {torch.bfloat16}
    assert vlm.dtype == torch.bfloat16 and set(seen) == {torch.float32}
    assert prefill(vlm, enc, enc.is_image).logits.dtype == torch.float32
    table = truncation_sweep(vlm, SAMPLES, max_new_tokens=2)
    full = table[table["depth"] == vlm.n_layers]
    assert table["kl"].notna().all() and (full["kl"] == 0).all() and full["same"].all()


def test_contradictions_and_missing_parts_are_named(path: Path, monkeypatch) -> None:
    for kwargs, message in [
        ({"device": "cpu", "device_map": "auto"}, "device='cpu' and device_map='auto' both say"),
        ({"device_map": "everywhere"}, "device_map='everywhere' is unknown: use 'auto'"),
        ({"load_in_4bit": True, "random_init": True}, "draw a control without it"),
        ({"load_in_4bit": True}, r"needs bitsandbytes.*pip install 'visdepth-utils\[4bit\]'"),
    ]:
        monkeypatch.setattr(placement.importlib.util, "find_spec", lambda _name: None)
        with pytest.raises(ValueError, match=message):
            load_vlm(path, **kwargs)
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda _name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA device"):
        load_vlm(path, load_in_4bit=True)
