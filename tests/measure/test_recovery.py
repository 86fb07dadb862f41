"""Distillation: zero adapters change nothing, gradients stop at the cut, a kill costs nothing."""

import json
from dataclasses import replace

import pytest
import torch

from tests import tiny
from visdepth_utils import truncation_sweep
from visdepth_utils.measure import distillation
from visdepth_utils.measure.distillation import Distillation, answer_loss
from visdepth_utils.measure.interventions import truncated
from visdepth_utils.measure.recovery import adapted, distill
from visdepth_utils.models.encoding import append_tokens
from visdepth_utils.models.generation import stop_ids
from visdepth_utils.models.vlm import VLM

SAMPLES = [tiny.sample(i, words=3 + i % 4) for i in range(8)]
SHORT = Distillation(depth=1, steps=4, batch=3, rate=1e-2)


@pytest.fixture(params=["llava", "qwen"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    return request.getfixturevalue(request.param)


def outputs(vlm: VLM, depth: int) -> list[str]:
    return truncation_sweep(vlm, SAMPLES, depths=[depth], max_new_tokens=5)["output"].tolist()


def logits(vlm: VLM) -> torch.Tensor:
    with torch.no_grad():
        return vlm.model(**vlm.encode(SAMPLES).inputs, use_cache=False).logits


def test_an_untrained_adapter_changes_nothing(vlm, tmp_path):
    before = logits(vlm)
    folder = distill(vlm, SAMPLES, replace(SHORT, rate=0.0), tmp_path / "a", max_new_tokens=4)
    assert torch.equal(logits(vlm), before)
    with adapted(vlm, folder):
        assert torch.equal(logits(vlm), before)
        assert outputs(vlm, vlm.n_layers) == vlm.generate(SAMPLES, 5)


def test_training_changes_the_truncated_model_and_leaves_the_full_one(vlm, tmp_path):
    names = [name for name, _ in vlm.model.named_modules()]
    before, cut = logits(vlm), outputs(vlm, 1)
    settings = replace(SHORT, steps=30, rate=2e-2)
    folder = distill(vlm, SAMPLES, settings, tmp_path / "a", max_new_tokens=4)
    losses = torch.load(folder / "state.pt", weights_only=True)["losses"]
    assert len(losses) == 30 and sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert torch.equal(logits(vlm), before)
    assert [name for name, _ in vlm.model.named_modules()] == names
    assert not any(p.requires_grad for p in vlm.model.parameters())
    assert not any(layer._forward_pre_hooks for layer in vlm.layers)
    with adapted(vlm, folder):
        assert not torch.allclose(logits(vlm), before)
        learned = outputs(vlm, 1)
    full = outputs(vlm, vlm.n_layers)
    matches = [sum(a == b for a, b in zip(side, full, strict=True)) for side in (cut, learned)]
    assert matches[1] >= matches[0]
    assert learned != cut
    assert torch.equal(logits(vlm), before)
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_only_the_decoder_is_adapted(vlm, tmp_path):
    config = distillation.lora_config(vlm, SHORT)
    assert config.target_modules
    modules = dict(vlm.model.named_modules())
    inside = {id(m) for layer in vlm.layers for m in layer.modules()}
    assert all(id(modules[name]) in inside for name in config.target_modules)


def test_no_gradient_flows_through_image_tokens_behind_the_cut(vlm):
    said = {sample.id: [7, 9, 11] for sample in SAMPLES}
    enc = append_tokens(vlm, vlm.encode(SAMPLES), [said[s.id] for s in SAMPLES])
    for depth in (0, 1, vlm.n_layers):
        inputs: dict[int, torch.Tensor] = {}

        def keep(layer, inputs=inputs):
            def hook(_module, args, kwargs):
                hidden = (args[0] if args else kwargs["hidden_states"]).requires_grad_()
                hidden.retain_grad()
                inputs[layer] = hidden
                return (
                    ((hidden, *args[1:]), kwargs)
                    if args
                    else (args, {**kwargs, "hidden_states": hidden})
                )

            return hook

        handles = [
            layer.register_forward_pre_hook(keep(i), with_kwargs=True)
            for i, layer in enumerate(vlm.layers)
        ]
        try:
            answer_loss(vlm, SAMPLES, said, depth).backward()
        finally:
            for handle in handles:
                handle.remove()
        for layer, hidden in inputs.items():
            size = float(hidden.grad[enc.is_image].abs().max())
            assert (size == 0) == (layer >= depth), (depth, layer, size)


def test_the_loss_is_the_mean_over_answer_tokens(vlm):
    said = {s.id: [5 + i, 9, 12][: 1 + i % 3] for i, s in enumerate(SAMPLES)}
    found = float(answer_loss(vlm, SAMPLES, said, 1))
    total = count = 0.0
    for sample in SAMPLES:
        ids = said[sample.id]
        enc = append_tokens(vlm, vlm.encode([sample]), [ids])
        with truncated(vlm, enc, 1), torch.no_grad():
            out = vlm.model(**enc.inputs, use_cache=False).logits[0, -len(ids) - 1 : -1]
        total -= float(out.log_softmax(-1)[range(len(ids)), ids].sum())
        count += len(ids)
    assert found == pytest.approx(total / count, abs=1e-5)


def test_targets_are_the_full_models_tokens_and_their_end(stopping):
    budget, stop = 12, stop_ids(stopping)
    targets = distillation.targets_of(stopping, SAMPLES, budget)
    ends = set()
    for sample in SAMPLES:  # token by token, each a whole run
        ids = stopping.encode([sample]).inputs["input_ids"]
        pixels = stopping.encode([sample]).inputs["pixel_values"]
        said: list[int] = []
        while len(said) < budget and not (said and said[-1] in stop):
            longer = torch.cat([ids, torch.tensor([said], dtype=torch.long)], 1)
            logits = stopping.model(input_ids=longer, pixel_values=pixels).logits
            said.append(int(logits[0, -1].argmax()))
        assert targets[sample.id] == said
        ends |= {said[-1]} & set(stop)
    assert len(ends) > 1 and stop[0] not in ends


@pytest.mark.parametrize("validation", [0, 3])
def test_a_killed_training_ends_where_an_undisturbed_one_does(vlm, tmp_path, validation):
    options = {"max_new_tokens": 4, "save_every": 2}
    settings = replace(SHORT, validation=validation, every=1)
    whole = distill(vlm, SAMPLES, settings, tmp_path / "whole", **options)

    def kill(done, _total, _label):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(vlm, SAMPLES, settings, tmp_path / "killed", progress=kill, **options)
    assert not any("lora" in name for name, _ in vlm.model.named_modules())
    again = distill(vlm, SAMPLES, settings, tmp_path / "killed", **options)
    states = [torch.load(f / "state.pt", weights_only=True) for f in (whole, again)]
    assert states[0]["losses"] == states[1]["losses"]
    for one, two in zip(states[0]["weights"], states[1]["weights"], strict=True):
        assert torch.equal(one, two)
    files = [(f / "adapter_model.safetensors").read_bytes() for f in (whole, again)]
    assert files[0] == files[1]
    assert states[0].get("validation") == states[1].get("validation")


def test_the_validation_loss_is_kept_and_so_are_the_weights_with_the_lowest(vlm, tmp_path):
    settings = replace(SHORT, steps=12, rate=3.0, validation=3, every=4)
    folder = distill(vlm, SAMPLES, settings, tmp_path / "a", max_new_tokens=4)
    curve = json.loads((folder / "validation.json").read_text())
    assert [done for done, *_ in curve] == [0, 4, 8, 12]
    spent = [distillation._schedule(step, 12) for step in range(12)]
    assert [s for _, s, _ in curve] == [
        pytest.approx(sum(spent[:k]) / sum(spent), abs=1e-4) for k in (0, 4, 8, 12)
    ]
    said = json.loads((folder / "targets.json").read_text())
    lowest = min(loss for *_, loss in curve)
    assert lowest < curve[-1][2]  # so high a rate ends worse than it was
    with adapted(vlm, folder), torch.no_grad():
        assert float(answer_loss(vlm, SAMPLES[-3:], said, 1)) == pytest.approx(lowest, abs=0.01)


def test_samples_of_the_validation_are_not_learnt_from(vlm, tmp_path):
    losses, others = [], [tiny.sample(20 + i) for i in range(3)]
    for name, samples in (("a", SAMPLES), ("b", SAMPLES[:5] + others)):
        settings = replace(SHORT, validation=3, every=2)
        folder = distill(vlm, samples, settings, tmp_path / name, max_new_tokens=4)
        losses.append(json.loads((folder / "losses.json").read_text()))
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="5 samples for steps of 6"):
        distill(vlm, SAMPLES, replace(settings, batch=6), tmp_path / "c", max_new_tokens=4)


def test_shuffled_pictures_are_another_training(vlm, tmp_path):
    one = distill(vlm, SAMPLES, SHORT, tmp_path / "own", max_new_tokens=4)
    two = distill(vlm, SAMPLES, replace(SHORT, shuffled=True), tmp_path / "other", max_new_tokens=4)
    losses = [torch.load(f / "state.pt", weights_only=True)["losses"] for f in (one, two)]
    assert losses[0] != losses[1]


def test_bad_input_is_named(vlm, tmp_path):
    with pytest.raises(ValueError, match="8 samples for steps of 99"):
        distill(vlm, SAMPLES, replace(SHORT, batch=99), tmp_path, max_new_tokens=4)
    with pytest.raises(ValueError, match="depth 44 is not in"):
        distill(vlm, SAMPLES, replace(SHORT, depth=44), tmp_path, max_new_tokens=4)
    with pytest.raises(ValueError, match="give max_new_tokens"):
        distill(vlm, SAMPLES, SHORT, tmp_path)
    with pytest.raises(FileNotFoundError, match="no adapter in"), adapted(vlm, tmp_path):
        pass
    distill(vlm, SAMPLES, replace(SHORT, steps=1), tmp_path / "a", max_new_tokens=4)
    with pytest.raises(ValueError, match="other steps"):
        distill(vlm, SAMPLES, SHORT, tmp_path / "a", max_new_tokens=4)
