"""The worlds, the questions and the packing behind the embedded models."""

import dataclasses
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.minivlm import lessons
from training.minivlm.freeze import held_out, questions_of
from training.minivlm.lessons import patch_labels
from training.minivlm.packing import pack, word_chat
from training.minivlm.recipe import N_IMAGE_TOKENS, build_model, build_processor
from training.minivlm.stages import Stage, hidden_states, run_stage
from training.minivlm.tower import CLASSES, normalise, start_projector, tower_features
from training.minivlm.train import PICTURES
from visdepth_utils.data.samples import WORLDS
from visdepth_utils.data.worlds import questions as Q
from visdepth_utils.data.worlds.reasoning import reason
from visdepth_utils.data.worlds.world import (
    COLOURS,
    COLUMNS,
    HELD_OUT_SEEDS,
    ROWS,
    TRAIN_SEEDS,
    VALIDATION_SEEDS,
    Scene,
    Thing,
    draw_scene,
    render,
    scene_key,
)

seeds = st.integers(0, 2**31)


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_scenes_are_well_formed_and_functions_of_the_seed(seed):
    scene = draw_scene(seed, "shapes")
    assert scene == draw_scene(seed, "shapes")
    assert 2 <= len(scene.things) <= 5
    cells = [t.cell for t in scene.things]
    assert cells == sorted(set(cells))  # reading order, one object a cell
    assert len({(t.colour, t.shape) for t in scene.things}) == len(cells)  # a name names one object
    chart = draw_scene(seed, "charts")
    assert 2 <= len(chart.bars) <= 5 and all(0 <= b.value <= 99 for b in chart.bars)
    assert len({b.colour for b in chart.bars}) == len(chart.bars)


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_pictures_are_deterministic(seed):
    for kind in ("shapes", "charts"):
        scene = draw_scene(seed, kind)
        first, second = (np.asarray(render(scene, seed)) for _ in range(2))
        assert first.shape == (64, 64, 3) and (first == second).all()


def test_a_bar_ends_where_its_value_says():
    """Counted on the picture itself: rows of a bar's own colour, against the value."""
    rng = np.random.default_rng(0)
    for seed in rng.integers(0, 10**6, 20):
        scene = draw_scene(int(seed), "charts")
        pixels = np.asarray(render(scene, int(seed)), dtype=float)
        from visdepth_utils.data.worlds.world import bar_columns

        for bar, (left, right) in zip(scene.bars, bar_columns(len(scene.bars)), strict=True):
            column = pixels[:58, int(left) + 1 : int(right) - 1].mean(axis=1)
            ground, paint = column[1], column[56]
            if bar.value < 5:
                continue
            share = np.clip(
                (column - ground) @ (paint - ground) / ((paint - ground) @ (paint - ground)), 0, 1
            )
            assert share.sum() / 0.54 == pytest.approx(bar.value, abs=2.5)


def test_patch_labels_name_the_objects():
    scene = Scene(
        "shapes", things=(Thing("large", "red", "circle", 0), Thing("small", "blue", "star", 8))
    )
    labels = {k: v.reshape(8, 8) for k, v in patch_labels(scene).items()}
    assert labels["colour"][0, 0] == 1 and labels["shape"][0, 0] == 1 and labels["size"][0, 0] == 2
    assert labels["colour"][7, 7] == 3 and labels["shape"][7, 7] == 6 and labels["size"][7, 7] == 1
    assert labels["colour"][0, 7] == 0 and labels["tens"].sum() == 0
    assert labels["row"][7, 7] == 3 and labels["column"][7, 7] == 3 and labels["row"][0, 0] == 1


def _answer_by_looking(q: Q.Question, scene: Scene) -> str:
    """An independent reader of the question text: no code shared with the generator."""
    words = q.prompt.replace("?", " ").replace(".", " ").split()
    colours = [w for w in words if w in ("red", "green", "blue", "yellow", "purple", "orange")]
    shapes = [w for w in words if w in ("circle", "square", "triangle", "diamond", "cross", "star")]
    if q.kind == "count":
        return str(sum(t.colour in colours or t.shape in shapes for t in scene.things))
    if q.kind == "compare":
        a, b = (colours or shapes)[:2]
        count = Counter([t.colour for t in scene.things] + [t.shape for t in scene.things])
        return "yes" if count[a] > count[b] else "no"
    first, second = (
        next(t for t in scene.things if (t.colour, t.shape) == pair)
        for pair in zip(colours, shapes, strict=True)
    )
    if "left" in words:
        holds = COLUMNS.index(first.column) < COLUMNS.index(second.column)
    elif "right" in words:
        holds = COLUMNS.index(first.column) > COLUMNS.index(second.column)
    elif "above" in words:
        holds = ROWS.index(first.row) < ROWS.index(second.row)
    else:
        holds = ROWS.index(first.row) > ROWS.index(second.row)
    return "yes" if holds else "no"


@given(seeds)
@settings(max_examples=200, deadline=None)
def test_reasoning_answers_are_true_and_the_same_in_all_styles(seed):
    scene = draw_scene(seed, "shapes")
    questions = reason(scene, np.random.default_rng(seed))
    assert [q.style for q in questions] == ["direct", "short", "long"]
    for q in questions:
        assert q.answer == _answer_by_looking(q, scene)
        if q.style != "direct":
            assert q.reference.endswith(f"so the answer is {q.answer} .")


@given(seeds)
@settings(max_examples=200, deadline=None)
def test_multiple_choice_has_one_right_option(seed):
    scene, rng = draw_scene(seed, "shapes"), np.random.default_rng(seed)
    q = Q.mcq(scene, rng)
    assert len(set(q.choices)) == 4 and q.answer in Q.LETTERS
    assert all(f"{a} {c}" in q.prompt for a, c in zip(Q.LETTERS, q.choices, strict=True))
    shown = {v for t in scene.things for v in (t.colour, t.shape, t.place)}
    assert [c in shown for c in q.choices] == [letter == q.answer for letter in Q.LETTERS]
    assert {len(set(c.split()) & {*ROWS, *COLUMNS}) for c in q.choices} in ({0}, {2})  # one kind


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_training_turns_are_true(seed):
    """Turns that no held-out set has: is it there, and answers that name the object first."""
    scene, rng = draw_scene(seed, "shapes"), np.random.default_rng(seed)
    shown = {v for t in scene.things for v in (t.colour, t.shape, t.place)}
    for _ in range(4):
        q = lessons.exists(scene, rng)
        asked = q.prompt.removesuffix(" ?").removeprefix("does the picture show ")
        assert (asked.removeprefix("do you see ") in shown) == (q.answer == "yes")
        said = lessons.say(scene, rng)
        if said.kind.startswith("mcq-"):
            value, letter = said.reference.rsplit(" ", 1)
            assert value in shown and f"{letter} {value}" in said.prompt


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_look_ups_are_true_and_have_one_answer(seed):
    scene = draw_scene(seed, "shapes")
    for k in range(4):
        q = Q.vqa(scene, np.random.default_rng([seed, k]))
        words = set(q.prompt.replace("?", " ").replace(".", " ").split())
        about = [
            t
            for t in scene.things
            if {"colour": t.shape in words, "shape": t.colour in words}.get(
                q.kind, t.place in q.prompt or f"{t.colour} {t.shape}" in q.prompt
            )
        ]
        assert len(about) == 1  # the question has one referent
        t = about[0]
        true = {
            "colour": t.colour,
            "shape": t.shape,
            "where": t.place,
            "what": f"{t.colour} {t.shape}",
        }
        assert q.answer == true[q.kind]


def test_options_and_truth_values_are_balanced():
    """Without the picture nothing is to be gained: letters and yes/no are even."""
    letters, truths = Counter(), Counter()
    for seed in range(3000):
        scene, rng = draw_scene(seed, "shapes"), np.random.default_rng(seed)
        letters[Q.mcq(scene, rng).answer] += 1
        q = reason(scene, rng, "direct")[0]
        if q.kind != "count":
            truths[q.kind, q.answer] += 1
    assert all(abs(n / 3000 - 0.25) < 0.03 for n in letters.values())
    for kind in ("compare", "spatial"):
        yes, no = truths[kind, "yes"], truths[kind, "no"]
        assert abs(yes / (yes + no) - 0.5) < 0.05


def test_every_word_is_one_token_and_numbers_are_digits(processor):
    tokenizer = processor.tokenizer
    for seed in range(50):
        scene = draw_scene(seed + 10**6, "shapes")
        for q in [
            Q.caption(scene, np.random.default_rng(seed)),
            *reason(scene, np.random.default_rng(seed)),
        ]:
            ids = tokenizer(q.prompt + " " + q.reference)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) == len((q.prompt + " " + q.reference).split())
    assert tokenizer.convert_ids_to_tokens(tokenizer("47")["input_ids"]) == ["4", "##7"]
    assert tokenizer.decode(tokenizer("a red star , 47 .")["input_ids"]) == "a red star, 47."


def test_packed_turns_are_exactly_single_prompts(processor):
    """Each packed turn gets the logits of the same prompt run alone through the stock model."""
    model = build_model("small", 0, processor.tokenizer).eval()
    seed = 5
    scene = draw_scene(seed, "shapes")
    picture = render(scene, seed)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        features = tower_features(model.model.vision_tower, pixels)
        batch = pack(
            [scene, scene],
            [0, 0],
            ["image", "text"],
            word_chat(processor.tokenizer),
            400,
            np.random.default_rng(1),
        )
        packed = model.lm_head(hidden_states(model, model.model.language_model, batch, features))
    assert len(batch.labels[0]) > 5
    for k, q in enumerate(batch.labels[0]):
        message = {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": q.prompt}],
        }
        text = (
            processor.apply_chat_template([message], add_generation_prompt=True)
            + f" {q.reference} <eos>"
        )
        inputs = processor(text=[text], images=[picture], return_tensors="pt")
        assert torch.allclose(inputs["pixel_values"], normalise(pixels), atol=1e-6)
        with torch.no_grad():
            alone = model(**inputs).logits[0]
        at = (batch.turns[0] == k).nonzero()[:, 0]
        assert (batch.ids[0, at] == inputs["input_ids"][0, -len(at) :]).all()
        assert (batch.positions[0, at[-1]] == inputs["input_ids"].shape[1] - 1).all()
        assert torch.allclose(packed[0, at - 1], alone[-len(at) - 1 : -1], atol=2e-5)


def test_prompt_and_reference_hold_enough_text_tokens(processor):
    """64 text tokens in every sample, so that text can be measured at the number of image
    tokens."""
    special = set(processor.tokenizer.all_special_ids)
    for task in ("mcq", "vqa", "chart", "caption", "reason"):
        for row in pd.read_parquet(WORLDS / f"{task}.parquet").itertuples():
            message = {"role": "user", "content": [{"type": "text", "text": row.prompt}]}
            text = (
                processor.apply_chat_template([message], add_generation_prompt=True)
                + " "
                + row.reference
            )
            ids = processor.tokenizer(text)["input_ids"]
            assert sum(i not in special for i in ids) >= N_IMAGE_TOKENS


def test_seed_ranges_are_disjoint():
    assert (
        TRAIN_SEEDS.stop <= VALIDATION_SEEDS.start and VALIDATION_SEEDS.stop <= HELD_OUT_SEEDS.start
    )


def test_frozen_sets_are_what_the_code_writes_and_unseen_in_training():
    images = pd.read_parquet(WORLDS / "images.parquet").set_index("image_id")
    for kind, tasks in {
        "shapes": ("mcq", "vqa", "caption", "reason"),
        "charts": ("chart",),
    }.items():
        mine = images[images.kind == kind]
        assert len(mine) >= 400
        trained = {scene_key(draw_scene(s, kind)) for s in TRAIN_SEEDS[: PICTURES[kind]]}
        keys = [scene_key(draw_scene(int(s), kind)) for s in mine.seed]
        assert len(set(keys)) == len(keys) and not trained & set(keys)
        assert [int(s) for s in mine.seed[:5]] == [s for s, _ in held_out(kind, 5)]
        for task in tasks:
            rows = pd.read_parquet(WORLDS / f"{task}.parquet")
            row = rows.iloc[-1]
            seed = int(images.seed[row.image_id])
            again = questions_of(task, draw_scene(seed, kind), seed)[-1]
            assert {k: v for k, v in dataclasses.asdict(again).items() if k != "choices"} == {
                k: row[k] for k in ("task", "kind", "prompt", "reference", "answer", "style")
            }


def test_a_resumed_stage_ends_where_an_undisturbed_one_does(processor, tmp_path):
    """Batches are functions of the step and all state is saved: two and two steps are four."""
    scenes = {
        kind: {part: [draw_scene(s, kind) for s in range(6)] for part in ("train", "validation")}
        for kind in ("shapes", "charts")
    }
    features = {
        kind: {part: torch.randn(6, N_IMAGE_TOKENS, 192) for part in parts}
        for kind, parts in scenes.items()
    }
    cached = {"scenes": scenes, "features": features}

    def train(folder, *steps):
        folder.mkdir()
        model = build_model("small", 0, processor.tokenizer)
        for n in steps:
            stage = Stage(
                "lookup", n, 0.01, 1e-3, (1.0, 0.0, 0.0), "both", "lookups", 0.0, (2, 2), (224, 192)
            )
            model = build_model("small", 0, processor.tokenizer)  # a new process starts anew
            run_stage(model, stage, 0, cached, processor.tokenizer, folder, lambda _: None, False)
        return model.state_dict()

    start = build_model("small", 0, processor.tokenizer).state_dict()
    whole, parts = train(tmp_path / "whole", 4), train(tmp_path / "parts", 2, 4)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    changed = {k for k in whole if not torch.equal(whole[k], start[k])}
    assert any("language_model" in k for k in changed)
    assert any("projector" in k for k in changed)
    assert not any("vision_tower" in k for k in changed)  # frozen


def test_the_projector_starts_where_patches_are_their_words(processor):
    """From features that carry labels under a common part and noise, hundreds of times a word."""
    model = build_model("base", 0, processor.tokenizer)
    rng = torch.Generator().manual_seed(0)
    scenes = {k: {"train": [draw_scene(s, k) for s in range(200)]} for k in ("shapes", "charts")}
    codes = {k: torch.randn(n, 192, generator=rng) for k, n in CLASSES.items()}

    def bank(kind):
        rows = []
        for scene in scenes[kind]["train"]:
            found = patch_labels(scene)
            rows.append(sum(codes[k][torch.from_numpy(found[k])] for k in CLASSES))
        noise = torch.randn(len(rows), N_IMAGE_TOKENS, 192, generator=rng)
        return {"train": 10 * torch.stack(rows) + 0.5 * noise + 70}

    cached = {"scenes": scenes, "features": {k: bank(k) for k in scenes}}
    ids_of = lambda word: [processor.tokenizer.convert_tokens_to_ids(word)]  # noqa: E731
    start_projector(model, cached, ids_of, seed=0)
    words = model.get_input_embeddings().weight.detach()
    word = lambda w: words[processor.tokenizer.convert_tokens_to_ids(w)] - words.mean(0)  # noqa: E731
    with torch.no_grad():
        states = model.model.multi_modal_projector(cached["features"]["shapes"]["train"])
    for scene, tokens in zip(scenes["shapes"]["train"][:20], states, strict=False):
        there = patch_labels(scene)["colour"] > 0
        thing = scene.things[0]
        at = patch_labels(Scene("shapes", things=(thing,)))["colour"] > 0
        means = tokens[torch.from_numpy(at & there)].mean(0) - words.mean(0)
        likely = max(COLOURS, key=lambda c: float(means @ word(c)))
        assert likely == thing.colour
    assert states.norm(dim=-1).mean() < 5 * words.norm(dim=-1).mean()
