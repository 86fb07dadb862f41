"""What is timed is the truncated decoder, bytes are exact, and times behave where they must."""

import numpy as np
import pytest
import torch

from tests import tiny
from tests.families.models import tiny_model
from visdepth_utils.measure import physical
from visdepth_utils.measure.costs import predicted_costs, shape_of
from visdepth_utils.measure.random_decoders import SIZES, materialised, random_decoder, text_config
from visdepth_utils.measure.timing import rows_of, time_by_depth, tower_share
from visdepth_utils.models.vlm import VLM


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_bytes_held_are_those_predicted(name: str) -> None:
    vlm = tiny_model(name)
    table = time_by_depth(vlm, 12, 7, repeats=2, new_tokens=2)
    predicted = predicted_costs(shape_of(vlm.model.config), 12, 7, bytes_per_value=4)
    for _, rows in table.groupby("repetition"):
        once = rows[~rows["again"]]
        assert once["depth"].tolist() == list(range(vlm.n_layers + 1))
        assert once["kv_bytes"].tolist() == predicted["kv_bytes"].tolist()
        assert rows.loc[rows["again"], "depth"].tolist() == [vlm.n_layers]
    assert (table[["prefill_s", "decode_s"]] > 0).all(axis=None)
    facts = table[["image_tokens", "other_tokens", "device", "dtype", "threads"]].drop_duplicates()
    assert facts.values.tolist() == [[12, 7, "cpu", "float32", torch.get_num_threads()]]


@pytest.mark.parametrize(("mode", "share"), [("freeze", 0.0), ("remove", 0.5)])
def test_bytes_held_where_rows_freeze_or_some_stay(llava: VLM, mode: str, share: float) -> None:
    table = time_by_depth(llava, 12, 7, mode=mode, share=share, repeats=1, new_tokens=1)
    told = {"share": share, "frozen": mode == "freeze", "bytes_per_value": 4}
    predicted = predicted_costs(shape_of(llava.model.config), 12, 7, **told)
    assert table.loc[~table["again"], "kv_bytes"].tolist() == predicted["kv_bytes"].tolist()


def test_the_decoder_alone_gives_the_logits_of_the_model(llava: VLM) -> None:
    """A step on the embedded rows is the model without its tower, truncated as it is."""
    enc = llava.encode([tiny.sample(0)])
    seen = []
    handle = llava.model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    for depth in (0, 2, llava.n_layers):
        _, first, _ = physical.greedy(llava, enc, depth, 1)
        places = torch.arange(seen[-1].shape[1])[None]
        with torch.no_grad(), physical.truncated_physically(llava, enc, depth):
            logits = physical.decoder_step(llava, seen[-1], places, physical.DynamicCache())
        assert torch.allclose(logits, first, atol=1e-6)
    handle.remove()


def test_fewer_rows_take_less_time() -> None:
    """The largest effect there is, far beyond what a busy machine can hide."""
    vlm = random_decoder("reference")
    table = time_by_depth(vlm, 700, 20, [0], repeats=3, new_tokens=1)
    whole = table[(table["depth"] == vlm.n_layers) & ~table["again"]]
    blind = table[table["depth"] == 0]
    assert blind["prefill_s"].median() < 0.5 * whole["prefill_s"].median()
    assert table["decoder"].unique().tolist() == ["reference (random weights)"]


def test_the_order_is_drawn_and_the_rows_are_sorted(llava: VLM) -> None:
    done = []
    table = time_by_depth(
        llava, 4, 4, [1], repeats=2, new_tokens=1, progress=lambda *now: done.append(now)
    )
    assert table["depth"].tolist() == [1, 3, 3] * 2
    assert done == [(1, 2, "4 image tokens"), (2, 2, "4 image tokens")]


def test_share_of_the_tower(llava: VLM) -> None:
    assert 0 < tower_share(llava, tiny.sample(0), repeats=2) < 1
    assert len(llava.model.get_decoder()._forward_pre_hooks) == 0


def test_random_decoders_have_weights_and_angles() -> None:
    """A model made without memory must come out as if made with it."""
    config = text_config("reference")
    vlm = random_decoder("reference", dtype=torch.bfloat16)
    assert vlm.n_layers == config.num_hidden_layers and vlm.dtype == torch.bfloat16
    usual = type(vlm.model)(config)
    for (name, made), other in zip(vlm.model.named_parameters(), usual.parameters(), strict=True):
        assert made.shape == other.shape
        spread = float(made.float().std()), float(other.detach().std())
        assert spread[0] == pytest.approx(spread[1], rel=0.1), name
    angles = vlm.model.get_decoder().rotary_emb.inv_freq, usual.model.rotary_emb.inv_freq
    assert torch.allclose(angles[0].float(), angles[1], rtol=1e-2)
    state = torch.get_rng_state()
    with torch.device("meta"):
        bare = type(vlm.model)(config)
    materialised(bare, "cpu")
    assert torch.equal(state, torch.get_rng_state())
    again = random_decoder("reference", dtype=torch.bfloat16).model
    assert torch.equal(again.lm_head.weight, vlm.model.lm_head.weight)


def test_sizes_are_those_of_the_published_decoders() -> None:
    """Parameters of the decoders in thousand millions, as their model cards have them."""
    told = {"LLaVA-1.5-7B": 6.74, "Qwen2.5-VL-7B": 7.61, "Qwen2.5-VL-3B": 3.09}
    for name, expected in told.items():
        shape, tied = shape_of(text_config(name)), text_config(name).tie_word_embeddings
        weights = shape.layers * shape.layer_weights + (1 if tied else 2) * shape.head_weights
        assert weights / 1e9 == pytest.approx(expected, rel=0.01), name
    assert set(told) | {"reference"} == set(SIZES)


def test_bad_input_is_named(llava: VLM) -> None:
    with pytest.raises(ValueError, match="give at least 1 and 2"):
        rows_of(llava, 0, 4)
    with pytest.raises(ValueError, match=r"depth 9 is not in 0\.\.3"):
        time_by_depth(llava, 4, 4, [9])
    with pytest.raises(ValueError, match="0 repetitions"):
        time_by_depth(llava, 4, 4, repeats=0)
    assert np.array_equal(rows_of(llava, 3, 5).is_image[0].numpy(), [0, 0, 1, 1, 1, 0, 0, 0])
