"""Capture: the states are the true ones, nothing is kept, hooks always go."""

import gc
import weakref

import pytest
import torch

from tests import tiny
from visdepth_utils.models.hooks import capture, hooked
from visdepth_utils.models.vlm import VLM


def states_of(vlm: VLM, enc) -> list[torch.Tensor]:
    """All L+1 states of a batch."""
    kept: dict[int, torch.Tensor] = {}
    capture(vlm, enc, lambda layer, state: kept.__setitem__(layer, state.clone()))
    assert list(kept) == list(range(vlm.n_layers + 1))
    return list(kept.values())


@pytest.fixture(params=["llava", "qwen"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    """Each family in turn."""
    return request.getfixturevalue(request.param)


def test_states_equal_hidden_states_but_for_the_last(vlm: VLM) -> None:
    enc = vlm.encode([tiny.sample(0), tiny.sample(1, images=2, words=9)])
    states = states_of(vlm, enc)
    with torch.no_grad():
        out = vlm.model(**enc.inputs, output_hidden_states=True, use_cache=False).hidden_states
    assert len(out) == vlm.n_layers + 1
    for layer in range(vlm.n_layers):
        assert torch.equal(states[layer], out[layer])
    assert not torch.allclose(states[-1], out[-1], atol=1e-2)
    with torch.no_grad():
        assert torch.equal(vlm.model.get_decoder().norm(states[-1]), out[-1])


def test_state_zero_holds_projected_image_features(llava: VLM) -> None:
    enc = llava.encode([tiny.sample(0), tiny.sample(1)])
    with torch.no_grad():
        features = llava.model.get_image_features(
            pixel_values=enc.inputs["pixel_values"]
        ).pooler_output
    first = states_of(llava, enc)[0]
    assert torch.equal(first[0][enc.is_image[0]], features[0])
    assert torch.equal(first[1][enc.is_image[1]], features[1])


def test_hooks_change_nothing_and_are_removed_even_after_an_error(vlm: VLM) -> None:
    enc = vlm.encode([tiny.sample(0), tiny.sample(1, words=9)])
    attended = enc.inputs["attention_mask"].bool()
    with torch.no_grad():
        before = vlm.model(**enc.inputs, use_cache=False).logits[attended]
    during = capture(vlm, enc, lambda layer, state: None, logits_to_keep=0)[attended]
    assert torch.equal(before, during)

    def fails(layer: int, state: torch.Tensor) -> None:
        raise RuntimeError("visitor broke")

    def hooks() -> list[int]:
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules()]

    present = hooks()  # transformers installs some of its own
    with pytest.raises(RuntimeError, match="visitor broke"):
        capture(vlm, enc, fails)
    assert hooks() == present
    with hooked(vlm, fails):
        assert sum(hooks()) == sum(present) + vlm.n_layers + 1
    assert hooks() == present


def test_nothing_is_kept(llava64: VLM) -> None:
    alive: list[weakref.ref] = []
    most = 0

    def visitor(layer: int, state: torch.Tensor) -> None:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(state.untyped_storage()))

    capture(llava64, llava64.encode([tiny.sample(0)]), visitor)
    gc.collect()
    assert sum(ref() is not None for ref in alive) == 0
    # The model itself holds its embeddings throughout, and the last layer's input until it returns.
    assert len(alive) == 5 and most <= 2


def test_states_are_fp32_in_a_bf16_model(llava_path) -> None:
    from visdepth_utils.models.load import load_vlm

    vlm = load_vlm(llava_path, dtype="bfloat16")
    assert vlm.dtype == torch.bfloat16
    assert {s.dtype for s in states_of(vlm, vlm.encode([tiny.sample(0)]))} == {torch.float32}


def test_padding_and_batching_do_not_change_states(vlm: VLM) -> None:
    samples = [
        tiny.sample(0),
        tiny.sample(1, images=2, words=12),
        tiny.sample(2, images=0, words=3),
    ]
    together = vlm.encode(samples, with_reference=True)
    batched = states_of(vlm, together)
    for i, one in enumerate(samples):
        enc = vlm.encode([one], with_reference=True)
        attended = together.inputs["attention_mask"][i].bool()
        assert torch.equal(together.is_image[i][attended], enc.is_image[0])
        assert torch.equal(together.is_text[i][attended], enc.is_text[0])
        for layer, state in enumerate(states_of(vlm, enc)):
            assert torch.allclose(batched[layer][i][attended], state[0], atol=1e-5)
