"""Models and labels that hold nothing, through the real pipeline: no claim may be supported.

Settings are the registered ones but for 4 draws in place of 20 and 30 images; seconds, not minutes.
"""

import pandas as pd
import pytest

from visdepth_utils import layer_geometry, load_task, load_vlm, substitution_grid, verdict
from visdepth_utils.claims.registry import claim_entry
from visdepth_utils.measure.geometry.token_groups import (
    GROUPS,
    own_answers,
    placed_geometry,
    text_geometry,
)

SMALL, N, DRAWS = "data/minivlm/small", 30, 4
LOADS = {
    "random init": {"random_init": True},
    "random init, std 0.06": {"random_init": True, "init_std": 0.06},
    "random decoder": {"random_init": "decoder"},
}


@pytest.fixture(scope="module")
def trained():
    return load_vlm(SMALL)


@pytest.fixture(scope="module")
def untrained():
    return {name: load_vlm(SMALL, **load) for name, load in LOADS.items()}


def settings(claim):
    return {**claim_entry(claim)["layer_geometry"], "draws": DRAWS}


@pytest.fixture(scope="module")
def asked(trained):
    """The reasoning samples of C2 and the trained model's own outputs."""
    task = load_task("reason", n=N, style="long")
    return task, own_answers(trained, task)


def test_c1_is_not_supported_by_untrained_models(untrained):
    task = load_task(claim_entry("C1")["task"], n=N)
    tables = {
        name: layer_geometry(vlm, task, modalities=["image"], **settings("C1"))
        for name, vlm in untrained.items()
    }
    for name, table in tables.items():
        others = {other: t for other, t in tables.items() if other != name}
        v = verdict("C1", table, control=others, model=name)
        assert (v.verdict, v.n_images) != ("not testable", 0)
        assert v.n_images == N
        assert v.verdict != "supported", v.reason


def test_c2_is_not_supported_by_untrained_models(untrained, asked):
    task, answers = asked
    groups = [*GROUPS, "shuffled image", "shuffled text"]
    tables = {
        name: text_geometry(vlm, task, answers, groups=groups, **settings("C2"))
        for name, vlm in untrained.items()
    }
    for name in ("random init", "random decoder"):
        placed = placed_geometry(untrained[name], task, answers, **settings("C2"))
        others = {other: t for other, t in tables.items() if other != name}
        v = verdict("C2", pd.concat([tables[name], placed]), control=others, model=name)
        assert v.n_images >= 0.9 * N
        assert v.verdict != "supported", v.reason


def test_shuffled_labels_support_neither_c1_nor_c2(trained, untrained, asked):
    """Tokens of both types under the labels "image" and "text": two sets that differ in nothing."""
    task, answers = asked

    def shuffled(vlm, seed):
        names = {"shuffled image": "image", "shuffled text": "text"}
        table = text_geometry(vlm, task, answers, groups=list(names), seed=seed, **settings("C2"))
        return table.assign(modality=table["modality"].map(names))

    first, second = shuffled(trained, 0), shuffled(trained, 1)
    again = second.assign(modality="shuffled " + second["modality"])
    placed = second[second["modality"] == "text"].assign(modality="text in the image's places")
    control = {"untrained": shuffled(untrained["random init"], 0)}
    v = verdict("C2", pd.concat([first, again, placed]), control=control)
    assert v.n_images >= 0.9 * N
    assert v.verdict == "not supported", v.reason
    assert abs(v.effect) < 0.5  # half a margin: the sets are alike
    # State 0 of text holds equal words; C1 asks for all states, so states are counted from 1.
    image = first[(first["modality"] == "image") & (first["layer"] >= 1)]
    v = verdict("C1", image, control=control)
    assert v.n_images >= 0.9 * N
    assert v.verdict != "supported", v.reason


def test_c3_is_not_supported_by_untrained_models(untrained):
    entry = claim_entry("C3")
    task = load_task("vqa", n=N)
    for name in ("random init", "random decoder"):
        grids = [
            substitution_grid(
                untrained[name], task, modality=kind, **{**entry["substitution_grid"], "stride": 4}
            )
            for kind in ("image", "text")
        ]
        v = verdict("C3", pd.concat(grids, ignore_index=True), model=name)
        assert v.n_images == N
        assert v.verdict == "not testable", v.reason


def test_shuffled_image_and_text_states_do_not_support_c3(trained):
    """Which kind of state a row is about is drawn anew for every image."""
    entry = claim_entry("C3")
    task = load_task("vqa", n=N)
    options = {**entry["substitution_grid"], "stride": 2}
    grids = [
        substitution_grid(trained, task, modality=kind, **options) for kind in ("image", "text")
    ]
    table = pd.concat(grids, ignore_index=True)
    swapped = table["image"].isin(sorted(set(table["image"]))[::2]) & (table["control"] == "")
    other = table["modality"].map({"image": "text", "text": "image"})
    table["modality"] = table["modality"].where(~swapped, other)
    # Enough images for support, were it there: each counts as four.
    copies = [table.assign(image=table["image"] + f"-{k}") for k in range(4)]
    v = verdict("C3", pd.concat(copies, ignore_index=True))
    assert v.n_images == 4 * N
    assert v.verdict != "supported", v.reason
