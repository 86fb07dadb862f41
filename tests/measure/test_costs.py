"""The cost model against numbers by hand and against torch's own counter on dropped rows."""

from types import SimpleNamespace

import pytest
import torch
import transformers as T
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tests.families.batches import batch
from tests.families.models import tiny_model
from visdepth_utils.measure.costs import Shape, counted_flops, predicted_costs, shape_of
from visdepth_utils.measure.patching.branches import check_depths
from visdepth_utils.measure.physical import truncated_physically
from visdepth_utils.measure.random_decoders import text_config
from visdepth_utils.models.load import load_vlm
from visdepth_utils.models.vlm import VLM

LLAVA = shape_of(text_config("LLaVA-1.5-7B"))
QWEN = shape_of(text_config("Qwen2.5-VL-7B"))


def test_llava_1_5_7b_by_hand() -> None:
    assert LLAVA.layer_weights == 4 * 4096**2 + 3 * 4096 * 11008 == 202_375_168
    assert 32 * LLAVA.layer_weights == 6_476_005_376
    table = predicted_costs(LLAVA, 576, 75).set_index("depth")
    whole, blind, half = table.loc[32], table.loc[0], table.loc[16]
    assert whole["prefill_linear"] == 2 * 651 * 6_476_005_376
    assert whole["prefill_attention"] == 4 * 651**2 * 4096 * 32 == 222_193_778_688
    assert whole["prefill_head"] == 2 * 4096 * 32064
    assert whole["kv_bytes"] == 651 * 524_288 == 341_311_488  # half a mebibyte a token
    assert blind["kv_bytes"] == 75 * 524_288
    assert half["kv_bytes"] == (651 + 75) * 16 * 16_384
    assert half["kv_ratio"] == pytest.approx((651 + 75) / (2 * 651))
    assert whole["decode_flops"] == 2 * 6_476_005_376 + 4 * 651 * 4096 * 32 + 2 * 4096 * 32064
    assert whole["decode_bytes"] == 2 * (6_476_005_376 + 4096 * 32064) + 341_311_488
    ratios = ["prefill_ratio", "decode_ratio", "decode_bytes_ratio", "kv_ratio"]
    assert (whole[ratios] == 1).all()


def test_qwen_2_5_vl_7b_by_hand() -> None:
    attention = 2 * 3584**2 + 2 * 3584 * 512  # 28 heads of queries, 4 of keys
    assert QWEN.layer_weights == attention + 3 * 3584 * 18944 == 233_046_016
    table = predicted_costs(QWEN, 1024, 60).set_index("depth")
    assert table.loc[28, "kv_bytes"] == 1084 * 57_344 == 62_160_896
    assert (
        predicted_costs(QWEN, 1024, 60, [28], bytes_per_value=4)["kv_bytes"].item() == 124_321_792
    )
    assert table.loc[28, "prefill_attention"] == 4 * 1084**2 * 3584 * 28
    whole_vlm = T.Qwen2_5_VLConfig(text_config={**text_config("Qwen2.5-VL-7B").to_dict()})
    assert shape_of(whole_vlm) == QWEN


@pytest.mark.parametrize(
    ("shape", "image", "other", "token_layers"),
    [(LLAVA, 576, 75, 383_328), (QWEN, 1024, 60, 464_464), (QWEN, 3000, 60, 1_266_720)],
)
def test_the_sum_over_depths_is_what_a_loop_costs(
    shape: Shape, image: int, other: int, token_layers: int
) -> None:
    """Token-layers of one prefill per depth, counted independently."""
    table = predicted_costs(shape, image, other)
    assert table["prefill_linear"].sum() == token_layers * shape.linear(1)
    assert table["kv_bytes"].sum() == token_layers * shape.kv_bytes(1)


@given(
    st.builds(
        Shape,
        layers=st.integers(1, 40),
        width=st.integers(8, 512),
        heads=st.integers(1, 8),
        kv_heads=st.integers(1, 8),
        head_dim=st.integers(1, 64),
        inner=st.integers(1, 512),
        gated=st.booleans(),
        vocabulary=st.integers(1, 1000),
    ),
    st.integers(1, 3000),
    st.integers(1, 300),
)
def test_every_cost_falls_with_each_layer_that_does_not_see(
    shape: Shape, image: int, other: int
) -> None:
    table = predicted_costs(shape, image, other)
    for name in ("prefill_flops", "decode_flops", "decode_bytes", "kv_bytes"):
        assert (table[name].diff().dropna() > 0).all()
    assert (table["kv_ratio"] >= other / (image + other) - 1e-12).all()
    assert table["kv_ratio"].iloc[-1] == table["prefill_ratio"].iloc[-1] == 1


@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "qwen3", "gemma", "mistral", "phi", "starcoder2"]
)
def test_weights_of_a_layer_are_those_of_the_built_model(kind: str) -> None:
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "pad_token_id": 0}
    config = T.AutoConfig.for_model(kind, **sizes, **heads)
    with torch.device("meta"):
        model = T.AutoModel.from_config(config)
    maps = [m for m in model.layers[0].modules() if isinstance(m, torch.nn.Linear)]
    assert sum(m.weight.numel() for m in maps) == shape_of(config).layer_weights


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_torch_counts_what_is_predicted_at_every_depth(name: str, attention: str) -> None:
    """Equal to the last FLOP: torch counts matrix products and attention, and so do we."""
    vlm = tiny_model(name, attention)
    enc = batch(name, [(3, -1, 5)])
    shape = shape_of(vlm.model.config)
    image = int(enc.is_image.sum())
    other = enc.is_image.numel() - image
    table = predicted_costs(shape, image, other).set_index("depth")
    for depth in range(vlm.n_layers + 1):
        with truncated_physically(vlm, enc, depth):
            counted = counted_flops(vlm, enc)
        layers = table.loc[depth, "prefill_linear"] + table.loc[depth, "prefill_attention"]
        assert counted["decoder"] == layers, depth
        assert counted["head"] == table.loc[depth, "prefill_head"]
        assert counted["vision"] > 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_torch_counts_what_is_predicted_where_rows_freeze_or_some_stay(
    name: str, attention: str
) -> None:
    vlm = tiny_model(name, attention)
    enc = batch(name, [(3, -1, 5)])
    image = int(enc.is_image.sum())
    sizes = (shape_of(vlm.model.config), image, enc.is_image.numel() - image)
    stay = enc.is_image[0] & (enc.is_image[0].cumsum(0) <= image // 2)
    for depth in check_depths(vlm, "all", "freeze"):
        for told, cut in (
            ({"frozen": True}, {"mode": "freeze"}),
            ({"share": image // 2 / image}, {"stay": stay}),
        ):
            row = predicted_costs(*sizes, [depth], **told).iloc[0]
            with truncated_physically(vlm, enc, depth, **cut):
                counted = counted_flops(vlm, enc)
            assert counted["decoder"] == row["prefill_linear"] + row["prefill_attention"], depth


def test_the_tower_is_counted_apart(llava: VLM) -> None:
    enc = llava.encode([tiny.sample(0)])
    whole = counted_flops(llava, enc)
    with truncated_physically(llava, enc, 0):
        blind = counted_flops(llava, enc)
    assert blind["vision"] == whole["vision"]
    # 16 patches, width 16: patches, 2 layers of 4 maps and an MLP of 32, attention, projector
    patches, layer = 2 * 16 * 192 * 16, 2 * 16 * (4 * 16 * 16 + 2 * 16 * 32) + 4 * 16 * 16 * 16
    assert whole["vision"] == patches + 2 * layer + 2 * 16 * (16 * 32 + 32 * 32)


def test_what_the_model_does_not_describe_is_refused() -> None:
    def config(**changed: object) -> SimpleNamespace:
        text = SimpleNamespace(**{**text_config("reference").to_dict(), **changed})
        return SimpleNamespace(get_text_config=lambda: text)

    assert shape_of(config()) == shape_of(text_config("reference"))
    with pytest.raises(ValueError, match="no number for intermediate_size"):
        shape_of(config(intermediate_size=[8, 16]))
    with pytest.raises(ValueError, match="layers of several shapes"):
        shape_of(config(is_heterogeneous=True))
    with pytest.raises(ValueError, match=r"has experts \(num_local_experts\)"):
        shape_of(config(num_local_experts=8))
    with pytest.raises(ValueError, match="linear attention"):
        shape_of(config(layer_types=["linear_attention"]))
    with pytest.raises(ValueError, match="at least one of each"):
        predicted_costs(LLAVA, 0, 75)
    with pytest.raises(ValueError, match=r"depth 33 is not in 0\.\.32"):
        predicted_costs(LLAVA, 576, 75, [3, 33])
    with pytest.raises(ValueError, match="there are reference, Qwen"):
        text_config("GPT-5")


def test_a_loaded_checkpoint_has_a_shape(qwen_path) -> None:
    vlm = load_vlm(qwen_path)
    assert shape_of(vlm.model.config).kv_heads == 2
