"""The lens on image tokens: states of the bank find themselves, patches hold what is drawn."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests import tiny
from visdepth_utils.data.samples import WORLDS
from visdepth_utils.data.tasks import load_task
from visdepth_utils.data.worlds.truth import Held, held_objects, sentences
from visdepth_utils.data.worlds.world import COLOURS, SHAPES, boxes, draw_scene, render
from visdepth_utils.measure.token_lens import (
    _by_text,
    covered,
    named_share,
    text_bank,
    token_grid,
    token_lens,
)
from visdepth_utils.models.hooks import capture, hooked
from visdepth_utils.models.vlm import VLM

TEXTS = ("the red circle", "what is left of the star ?", "how many circle are red ?")


def test_a_token_of_the_bank_finds_itself(llava: VLM) -> None:
    bank = text_bank(llava, TEXTS)
    assert bank.words == list(dict.fromkeys(" ".join(TEXTS).split()))
    for text in TEXTS:
        ids, states = llava.tokenizer(text)["input_ids"], []
        with hooked(llava, lambda _, state, to=states: to.append(state[0, 1:])), torch.no_grad():
            llava.model.get_decoder()(input_ids=torch.tensor([ids]), use_cache=False)
        for layer, state in enumerate(states):
            words, scores = _by_text(bank, layer, 3 * state, top=1)
            assert [row[0] for row in words] == text.split()
            assert np.allclose(scores, 1, atol=1e-5)


def test_the_table_has_a_row_for_every_token_layer_and_lens(llava: VLM) -> None:
    samples = [tiny.sample(0), tiny.sample(1, words=9), replace(tiny.sample(2), images=())]
    table = token_lens(llava, samples, bank=TEXTS, top=2)
    assert len(table) == 2 * 2 * (llava.n_layers + 1) * 16
    assert not table.duplicated(["sample", "layer", "token", "lens"]).any()
    assert (4 * table["row"] + table["column"]).eq(table["token"]).all()
    alone = token_lens(llava, samples[1:2], bank=TEXTS[::-1], top=2)
    together = table[table["sample"] == samples[1].id].reset_index(drop=True)
    assert alone["words"].tolist() == together["words"].tolist()
    assert table["words"].map(len).max() == 2


def test_the_grid_is_known_where_it_is_a_grid(llava: VLM, qwen: VLM) -> None:
    one, two = tiny.sample(0), tiny.sample(1, images=2)
    wide = replace(one, images=(tiny.picture(0, 64).crop((0, 0, 64, 32)),))
    assert token_grid(llava, llava.encode([one, two, wide])) == [(4, 4), None, None]
    tiled = replace(llava, family=replace(llava.family, square_grid=False))
    assert token_grid(tiled, llava.encode([one])) == [None]
    wide = replace(one, images=(tiny.picture(0, 224).crop((0, 0, 224, 112)),))
    enc = qwen.encode([wide])
    (rows, columns) = token_grid(qwen, enc)[0]
    assert columns > rows > 1
    assert rows * columns == int(enc.is_image.sum())
    assert token_grid(qwen, qwen.encode([two])) == [None]


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_tokens_lie_where_the_grid_says(name: str, request: pytest.FixtureRequest) -> None:
    """A change of one place of the picture changes that place's token most."""
    vlm, picture = request.getfixturevalue(name), Image.new("RGB", (56, 56), "grey")

    def embedded(image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
        enc, states = vlm.encode([replace(tiny.sample(0), images=(image,))]), []
        capture(vlm, enc, lambda _, state: states.append(state[0, enc.is_image[0]]))
        return states[0], token_grid(vlm, enc)[0]

    plain, (rows, columns) = embedded(picture)
    for row, column in ((0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)):
        marked = np.asarray(picture).copy()
        high, wide = 56 // rows, 56 // columns
        marked[row * high : (row + 1) * high, column * wide : (column + 1) * wide] = [255, 0, 0]
        change = (embedded(Image.fromarray(marked))[0] - plain).norm(dim=-1)
        assert int(change.argmax()) == row * columns + column


def test_boxes_hold_what_is_drawn_and_nothing_lies_outside() -> None:
    for seed in range(40):
        for kind in ("shapes", "charts"):
            scene = draw_scene(seed, kind)
            pixels = np.asarray(render(scene, seed)).astype(int)
            coloured = np.ptp(pixels, axis=2) > 60  # ground, axis and noise are grey
            inside = np.zeros_like(coloured)
            for left, top, right, bottom in boxes(scene, seed):
                across = slice(round(64 * left - 0.5), round(64 * right + 0.5))
                down = slice(max(0, round(64 * top - 0.5)), round(64 * bottom + 0.5))
                inside[down, across] = True
                if bottom - top > 0.1:
                    box = coloured[down, across]
                    assert box[:2].any() and box[-2:].any()
                    assert box[:, :2].any() and box[:, -2:].any()
            assert not (coloured & ~inside).any(), (seed, kind)


def test_stored_pictures_have_their_truth() -> None:
    """A patch that one object fills has its colour in the stored picture."""
    samples = [*load_task("vqa", n=12).samples, *load_task("chart", n=6).samples]
    found = held_objects([s.image_id for s in samples])
    assert set(found) == {s.image_id for s in samples}
    filled = 0
    for sample in samples:
        pixels = np.asarray(sample.images[0]).astype(int)
        for one in found[sample.image_id]:
            x, y = (round(32 * (one.box[i] + one.box[i + 2])) for i in (0, 1))
            if one.box[3] - one.box[1] < 0.1:
                continue
            filled += 1
            apart = {c: np.abs(pixels[y, x] - rgb).sum() for c, rgb in COLOURS.items()}
            assert min(apart, key=apart.get) == one.words[0]
            assert len(one.words) == 1 or one.words[1] in SHAPES
    assert filled > 30
    assert held_objects(["shapes-0000"], WORLDS.parent) == {}


def test_the_bank_of_the_worlds_has_all_their_words() -> None:
    said = " ".join(sentences()).split()
    assert {*COLOURS, *SHAPES, "small", "large", "left", "center"} <= set(said)
    assert sentences() == sentences()
    frozen = load_task("caption").samples
    assert not {s.reference for s in frozen} & set(sentences())


def test_what_a_patch_holds() -> None:
    square = Held((0.25, 0.0, 0.75, 0.3), ("red", "square"))
    assert covered([square], 2, 2) == [[0], [0], [], []]
    assert covered([square], 1, 4) == [[], [0], [0], []]  # 30% of the patch's height
    assert covered([replace(square, box=(0.25, 0.0, 0.75, 0.2))], 1, 4) == [[]] * 4


def test_shares_known_by_hand() -> None:
    """Two pictures of 1 x 2 patches: the first names its object at layer 0, not at layer 1."""
    held = {
        "a": [Held((0, 0, 0.5, 1), ("red", "star"))],
        "b": [Held((0, 0, 0.5, 1), ("red", "cross")), Held((0.5, 0, 1, 1), ("blue", "star"))],
    }
    said = {
        ("a", 0): [["star", "blue"], ["cross"]],
        ("a", 1): [["blue", "red"], ["red"]],
        ("b", 0): [["red"], ["blue"]],
        ("b", 1): [["cross"], ["cross"]],
    }
    table = pd.DataFrame(
        [
            {"sample": f"s{image}", "image": image, "layer": layer, "lens": "text"}
            | {"token": i, "row": 0, "column": i, "words": words}
            for (image, layer), rows in said.items()
            for i, words in enumerate(rows)
        ]
    )
    found = named_share(table, held).set_index(["image", "layer", "labels"])
    assert found["value"].unstack("labels").to_dict("index") == {
        ("a", 0): {"own": 1.0, "other pictures": 0.0},
        ("a", 1): {"own": 0.0, "other pictures": 0.0},
        ("b", 0): {"own": 1.0, "other pictures": 0.5},
        ("b", 1): {"own": 0.5, "other pictures": 0.0},
    }
    assert found["n_tokens"].groupby("image").first().to_dict() == {"a": 1, "b": 2}
    two = named_share(table, held, top=2).set_index(["image", "layer", "labels"])["value"]
    assert two["a", 1, "own"] == 1.0
    assert named_share(table, {}).empty
    assert named_share(table.assign(row=pd.NA), held).empty


def test_bad_input_is_named(llava: VLM) -> None:
    with pytest.raises(ValueError, match="'soul' is unknown: lenses are"):
        token_lens(llava, [tiny.sample(0)], lenses=["soul"])
    with pytest.raises(ValueError, match="'sound' is unknown"):
        token_lens(llava, [tiny.sample(0)], modality="sound")
    with pytest.raises(ValueError, match="top=0: give at least 1"):
        token_lens(llava, [tiny.sample(0)], top=0)
    with pytest.raises(ValueError, match="bank of sentences has no words"):
        token_lens(llava, [tiny.sample(0)], bank=[])
    assert token_lens(llava, []).empty
