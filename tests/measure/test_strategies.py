"""Decoding strategies under truncation, against the sweep and against transformers alone."""

import pandas as pd
import pytest
import torch
from transformers import GenerationConfig

from tests import tiny
from visdepth_utils import truncation_sweep
from visdepth_utils.measure.costs import with_token_layers
from visdepth_utils.measure.distillation import Distillation
from visdepth_utils.measure.interventions import truncated
from visdepth_utils.measure.recovery import adapted, distill
from visdepth_utils.measure.strategies import STRATEGIES, decode
from visdepth_utils.models.vlm import VLM

SAMPLES = [tiny.sample(i, words=3 + 2 * i) for i in range(4)]


@pytest.fixture(params=["llava", "qwen"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("mode", ["remove", "renumber", "freeze"])
def test_greedy_is_the_sweeps(vlm, mode):
    sweep = truncation_sweep(vlm, SAMPLES, mode=mode, max_new_tokens=6)
    for depth in range(vlm.n_layers + 1):
        found = decode(
            vlm, SAMPLES, depth=depth, mode=mode, strategies=["greedy"], max_new_tokens=6
        )
        assert found["output"].tolist() == sweep[sweep["depth"] == depth]["output"].tolist()


def test_beams_of_the_whole_model_are_transformers_own(vlm):
    found = decode(vlm, SAMPLES, strategies=["beam"], max_new_tokens=6)
    enc = vlm.encode(SAMPLES)
    config = GenerationConfig(
        max_new_tokens=6,
        num_beams=4,
        do_sample=False,
        pad_token_id=vlm.tokenizer.pad_token_id,
        eos_token_id=vlm.tokenizer.eos_token_id,
    )
    ids = vlm.model.generate(**enc.inputs, generation_config=config)
    new = ids[:, enc.inputs["input_ids"].shape[1] :]
    texts = vlm.tokenizer.batch_decode(new, skip_special_tokens=True)
    assert found["output"].tolist() == [text.strip() for text in texts]


def test_beams_under_truncation_depend_on_the_depth_and_not_on_the_batch(vlm):
    depth = 1
    found = decode(vlm, SAMPLES, depth=depth, strategies=["greedy", "beam"], max_new_tokens=4)
    assert len(found) == 2 * len(SAMPLES)
    alone = decode(vlm, SAMPLES[1:2], depth=depth, strategies=["beam"], max_new_tokens=4)
    whole = found[found["strategy"] == "beam"].set_index("sample")["output"]
    assert alone["output"].item() == whole[SAMPLES[1].id]
    last = decode(vlm, SAMPLES, depth=vlm.n_layers, strategies=["beam"], max_new_tokens=4)
    none = decode(vlm, SAMPLES, depth=0, strategies=["beam"], max_new_tokens=4)
    assert last["output"].tolist() != none["output"].tolist()


def test_seeds_repeat_and_differ_and_leave_the_generator_alone(vlm):
    options = {"depth": 1, "strategies": ["temperature", "top-p"], "max_new_tokens": 8}
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = decode(vlm, SAMPLES, seeds=(0, 1), **options)
    assert torch.equal(torch.random.get_rng_state(), before)
    two = decode(vlm, SAMPLES, seeds=(0, 1), **options)
    assert one["output"].tolist() == two["output"].tolist()
    by_seed = one.groupby("seed")["output"].agg(list)
    assert by_seed[0] != by_seed[1]
    greedy = decode(vlm, SAMPLES, seeds=(0, 1), strategies=["greedy"], max_new_tokens=3)
    assert greedy["seed"].eq(0).all() and len(greedy) == len(SAMPLES)


def test_a_cold_temperature_is_greedy(vlm, monkeypatch):
    cold = {"do_sample": True, "temperature": 1e-4, "top_p": 1.0, "top_k": 0}
    monkeypatch.setitem(STRATEGIES, "temperature", cold)
    found = decode(vlm, SAMPLES, depth=1, strategies=["greedy", "temperature"], max_new_tokens=6)
    sides = found.groupby("strategy")["output"].agg(list)
    assert sides["greedy"] == sides["temperature"]


def test_bad_input_is_named(vlm):
    with pytest.raises(ValueError, match="unknown strategy 'wild'"):
        decode(vlm, SAMPLES, strategies=["wild"], max_new_tokens=2)
    with pytest.raises(ValueError, match="no seeds given"):
        decode(vlm, SAMPLES, seeds=(), max_new_tokens=2)
    with pytest.raises(ValueError, match="give max_new_tokens"):
        decode(vlm, SAMPLES)
    with pytest.raises(ValueError, match="depth 99 is not in"):
        decode(vlm, SAMPLES, depth=99, max_new_tokens=2)
    with truncated(vlm, vlm.encode(SAMPLES[:1]), 1):
        pass  # nothing is left behind by the error above
    assert not any(layer._forward_pre_hooks for layer in vlm.layers)


def test_token_layers_by_hand(vlm):
    sweep = truncation_sweep(vlm, SAMPLES, max_new_tokens=5)
    table = with_token_layers(vlm, sweep, SAMPLES)
    enc = vlm.encode(SAMPLES[1:2])
    images, n = int(enc.is_image.sum()), enc.is_image.shape[1]
    for _, row in table[table["sample"] == SAMPLES[1].id].iterrows():
        rest = (n - images + row["n_tokens"]) * vlm.n_layers
        assert row["token_layers"] == images * row["depth"] + rest
    with pytest.raises(ValueError, match="not among the samples"):
        with_token_layers(vlm, sweep, SAMPLES[:2])


def test_an_adapter_answers_as_within_adapted_and_is_gone_afterwards(llava, tmp_path):
    settings = Distillation(depth=1, steps=3, batch=2, rate=2e-2)
    folder = distill(llava, SAMPLES, settings, tmp_path / "own", max_new_tokens=4)
    options = {"depth": 1, "strategies": ["greedy", "beam"], "max_new_tokens": 4}
    plain = decode(llava, SAMPLES, **options)
    with adapted(llava, folder):
        expected = decode(llava, SAMPLES, **options)
    found = decode(llava, SAMPLES, adapter=folder, **options)
    assert found.equals(expected)
    assert not found.equals(plain)
    assert decode(llava, SAMPLES, **options).equals(plain)
    with pytest.raises(FileNotFoundError, match="no adapter in"):
        decode(llava, SAMPLES, adapter=tmp_path / "none", **options)


def test_what_is_drawn_does_not_depend_on_the_batches_before(vlm):
    options = {"depth": 1, "max_new_tokens": 6, "seeds": (0, 1), "batch_size": 2}
    whole = decode(vlm, SAMPLES, **options)
    blocks = [decode(vlm, SAMPLES[i : i + 2], **options) for i in (2, 0)]
    keys = ["sample", "strategy", "seed"]
    parts = pd.concat(blocks).set_index(keys)["output"].sort_index()
    assert parts.equals(whole.set_index(keys)["output"].sort_index())


def test_progress_counts_samples(vlm):
    told = []
    options = {"seeds": (0, 1), "max_new_tokens": 1, "batch_size": 3}
    decode(vlm, SAMPLES, progress=lambda *told_now: told.append(told_now), **options)
    done = [now[0] for now in told]
    assert done == sorted(done) and len(told) == 2 * 6
    assert told[5][:2] == (3, 4) and told[-1][:2] == (4, 4)
