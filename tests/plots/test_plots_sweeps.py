"""Figures of the interventions: what is drawn, from tables whose means are known."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from tests.strict import no_warnings
from visdepth_utils.plots.bands import LEAST_KL, bands, gains, retention
from visdepth_utils.plots.grid import gap_curves, substitution_maps
from visdepth_utils.plots.style import COLOURS
from visdepth_utils.plots.sweeps import (
    kl_by_depth,
    modes_compared,
    read_or_process,
    retention_curves,
)

LAYERS, DEPTHS, N = (1, 3, 5), range(5), 4


@pytest.fixture(autouse=True)
def no_warnings_and_no_figure_left_open():
    with no_warnings():
        yield
    assert plt.get_fignums() == []  # after an error too


def grid_table(images=N, answers=True, kinds=(("image", ""), ("text", ""), ("image", "noise"))):
    """KL is 10 ** gap / 1000 for image states, ten times that for text; scores fall by gap."""
    rows = []
    for i in range(images):
        for layer in LAYERS:
            rows.append((i, "image", layer, layer, "other image", 4.0, 0.25, 0.0))
            for modality, control in kinds:
                for source_layer in LAYERS:
                    gap = abs(source_layer - layer)
                    if control == "noise" and not gap:
                        continue
                    size = 10 if modality == "text" else 1
                    kl = size * 10**gap / 1000 if gap else 0.0
                    rows.append(
                        (i, modality, source_layer, layer, control, kl, 1 - gap / 8, gap < 4)
                    )
    names = ["image", "modality", "source_layer", "layer", "control", "kl", "similarity", "correct"]
    table = pd.DataFrame(rows, columns=names)
    table["sample"] = table["image"].map("s{}".format)
    worse = table[(table["control"] == "") & (table["source_layer"] != table["layer"])]
    table = pd.concat([table.assign(rescaled=False), worse.assign(rescaled=True, kl=99.0)])
    return table if answers else table.assign(similarity=np.nan, correct=np.nan)


def sweep_table(tasks=("vqa", "caption"), images=N, modes=(("remove", "masked"),)):
    """Scores rise evenly from 0 to 1 over depth; images differ by half a step."""
    last = DEPTHS[-1]
    rows = [
        {
            "sample": f"{task}{i}",
            "image": f"i{i}",
            "task": task,
            "mode": mode,
            "implementation": kind,
            "depth": d,
            "correct": d / last if task == "vqa" else (d / last) ** 2,
            "same": d == last,
            **{name: 0.5 + d / 8 for name in ("bleu", "rouge", "chrf")},
            **{f"{name}_full": 0.4 + 0.15 * d for name in ("bleu", "rouge", "chrf")},
        }
        for task in tasks
        for mode, kind in modes
        for i in range(images)
        for d in DEPTHS
    ]
    return pd.DataFrame(rows)


def conditions_table(tasks=("vqa", "caption"), images=N):
    rows = [
        {"sample": f"{t}{i}", "image": f"i{i}", "task": t, "condition": c, "score": s}
        for t in tasks
        for i in range(images)
        for c, s in (("blind", 0.2), ("other", 0.1))
    ]
    return pd.DataFrame(rows)


def tokens_table(images=N, depths=DEPTHS, mode="remove"):
    """Answers of one token, by 4 - d nats off; below depth 2 the token changes."""
    rows = [
        {"sample": f"s{i}", "image": f"i{i}", "task": "new", "mode": mode, "depth": d}
        | {"kl": 4.0 - d, "same_top1": d > 1}
        for i in range(images)
        for d in depths
    ]
    return pd.DataFrame(rows)


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_bands_resample_images_as_a_whole():
    rows = pd.DataFrame({"image": list("aabb") * 2, "x": [0] * 4 + [1] * 4})
    rows["value"] = [0, 2, 3, 3, 1, 3, 4, 4]  # image a: 1 and 2, image b: 3 and 4
    found = bands(rows, "x", "value")
    assert found["mean"].tolist() == [2, 3]
    assert found["lo"].tolist() == [1, 2]
    assert found["hi"].tolist() == [3, 4]
    one = bands(rows[rows["image"] == "a"], "x", "value")
    assert one["mean"].tolist() == [1, 2]
    assert one["lo"].isna().all()
    assert bands(rows.assign(value=np.nan), "x", "value").empty


def test_retention_is_a_ratio_of_means():
    sweep = sweep_table(("vqa",))
    sweep["correct"] = sweep["depth"].map({0: 0.1, 1: 0.2, 2: 0.5, 3: 0.8, 4: 1.0})
    floor = pd.DataFrame({"image": [f"i{i}" for i in range(N)], "score": 0.2})
    found = retention(sweep, floor)
    assert found["mean"].tolist() == pytest.approx([-0.125, 0, 0.375, 0.75, 1])
    assert found["lo"].tolist() == pytest.approx(found["hi"].tolist())
    assert retention(sweep, floor.assign(score=1.0)).empty  # nothing gained, nothing to keep
    with pytest.raises(ValueError, match="floor lacks 2 of 4 images: evaluate the samples"):
        retention(sweep, floor[:2])


def test_bounds_of_retention_come_from_whole_images():
    sweep = sweep_table(("vqa",), images=2)
    falls = sweep["image"] == "i1"
    sweep["correct"] = np.where(falls, (sweep["depth"] == 4).astype(float), sweep["depth"] / 4)
    floor = pd.DataFrame({"image": ["i0", "i1"], "score": 0.0})
    found = retention(sweep, floor)
    assert found["mean"].tolist() == pytest.approx([0, 0.125, 0.25, 0.375, 1])
    assert found["lo"].tolist() == pytest.approx([0, 0, 0, 0, 1])  # image i1 alone
    assert found["hi"].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1])  # image i0 alone


def test_gain_that_cannot_be_asked_is_not_called_absent():
    sweep = sweep_table(("vqa",))
    floor = pd.DataFrame({"image": [f"i{i}" for i in range(N)], "score": 0.2})
    assert gains(sweep, floor) is True
    assert gains(sweep, floor.assign(score=1.0)) is False
    assert gains(sweep, floor.iloc[:0]) is None
    assert gains(sweep.assign(correct=np.nan), floor) is None
    assert gains(sweep[sweep["image"] == "i0"], floor) is None
    gap = sweep.assign(correct=sweep["correct"].where(sweep["sample"] != "vqa0"))
    assert gains(gap, floor) is True
    rest = retention(sweep[sweep["sample"] != "vqa0"], floor)
    assert retention(gap, floor)["mean"].tolist() == pytest.approx(rest["mean"].tolist())


def test_maps_hold_the_means_of_unscaled_rows():
    fig = substitution_maps(grid_table())
    maps = [ax for ax in fig.axes if ax.get_label() != "<colorbar>"]
    image, text, noise = maps[:3]
    assert [ax.get_title() for ax in maps[:3]] == [
        "image states",
        "text states",
        "noise of the same size",
    ]
    cells = image.collections[0].get_array().reshape(4, 3)
    assert cells[0].tolist() == [4, 4, 4]  # another picture, a row of its own on top
    assert cells[1].tolist() == [10, 0.1, 0]  # source_layer 5 at layers 1, 3, 5
    assert cells[3].tolist() == [0, 0.1, 10]
    assert [t.get_text() for t in image.get_yticklabels()][1:] == ["5", "3", "1"]
    assert text.collections[0].get_array().reshape(4, 3)[1].tolist() == [100, 1, 0]
    unknown = np.ma.getmaskarray(noise.collections[0].get_array()).reshape(4, 3)
    assert unknown.tolist()[0] == [True] * 3  # another picture: said once
    assert unknown[1:].tolist() == np.eye(3, dtype=bool)[::-1].tolist()  # no noise without a gap
    assert image.collections[0].get_clim() == text.collections[0].get_clim() == (0, 4)
    lost = maps[3].collections[0].get_array().reshape(4, 3)
    assert lost[0].tolist() == [1, 1, 1]
    assert lost[1].tolist() == [1, 0, 0]


def test_maps_without_answers_or_text_are_smaller():
    assert len(substitution_maps(grid_table(answers=False)).axes) == 4  # 3 maps, a scale
    fig = substitution_maps(grid_table(answers=False, kinds=(("text", ""),)))
    assert [ax.get_title() for ax in fig.axes if ax.get_title()] == ["text states"]


def test_gap_curves_average_over_pairs_of_the_same_gap():
    fig = gap_curves(grid_table())
    similarity, kl = fig.axes
    found = lines(kl)
    assert found["image states"].get_xdata().tolist() == [2, 4]
    assert found["image states"].get_ydata() == pytest.approx([0.1, 10])
    assert found["text states"].get_ydata() == pytest.approx([1, 100])
    assert found["another picture's states"].get_ydata() == pytest.approx([4, 4])
    assert to_hex(found["image states"].get_color()) == COLOURS["image"].lower()
    assert found["noise of the same size"].is_dashed()
    assert lines(similarity)["image states"].get_ydata() == pytest.approx([0.75, 0.5])
    assert len(gap_curves(grid_table(answers=False)).axes) == 1
    low = grid_table()
    low["kl"] = low["kl"].clip(upper=1e-9)
    assert lines(gap_curves(low).axes[1])["image states"].get_ydata() == pytest.approx(LEAST_KL)


def test_retention_curves_show_share_scores_floors_and_texts():
    fig = retention_curves(sweep_table(), conditions=conditions_table())
    titles = [ax.get_title() for ax in fig.axes]
    assert titles == [
        "share of the gain that is left",
        "vqa: score",
        "caption: score",
        "caption: likeness of texts",
    ]
    shares = lines(fig.axes[0])
    assert shares["vqa"].get_ydata() == pytest.approx([-0.25, 0.0625, 0.375, 0.6875, 1])
    scores = lines(fig.axes[2])
    assert scores["caption"].get_ydata() == pytest.approx([0, 1 / 16, 1 / 4, 9 / 16, 1])
    assert scores["no picture"].get_ydata() == pytest.approx([0.2, 0.2])
    assert scores["another picture"].get_ydata() == pytest.approx([0.1, 0.1])
    texts = lines(fig.axes[3])
    assert texts["chrf, reference"].get_ydata() == pytest.approx([0.5, 0.625, 0.75, 0.875, 1])
    assert texts["bleu, full model's text"].get_ydata() == pytest.approx([0.4, 0.55, 0.7, 0.85, 1])


def test_frozen_and_removed_are_drawn_as_shares_and_controls_without_the_whole_model():
    modes = (("remove", "masked"), ("freeze", "masked"), ("freeze noise", "masked"))
    sweep = sweep_table(modes=modes)
    exact = sweep["depth"] / DEPTHS[-1]
    sweep["correct"] = exact.where(sweep["mode"] != "freeze", 1.0)
    fig = read_or_process(sweep, margin=0.25)
    assert [ax.get_title() for ax in fig.axes] == ["vqa", "caption"]
    for ax in fig.axes:
        lines = {line.get_label(): line.get_xydata().T for line in ax.lines}
        frozen, removed, noise, kept = lines.values()
        assert frozen[1].tolist() == [1, 1, 1, 1, 1]
        assert removed.tolist() == [[0, 1, 2, 3, 4], [0, 0.25, 0.5, 0.75, 1]]
        assert noise[0].tolist() == [0, 1, 2, 3]
        assert "75% kept" in lines and set(kept[1]) == {0.75}


def test_a_task_without_gain_says_so_where_frozen_is_held_against_removed():
    sweep = sweep_table(tasks=("vqa",), modes=(("remove", "masked"), ("freeze", "masked")))
    fig = read_or_process(sweep.assign(correct=0.5))
    assert [text.get_text() for text in fig.axes[0].texts] == ["no clear gain by the picture"]
    with pytest.raises(ValueError, match="sweep has no answers"):
        read_or_process(sweep.assign(correct=np.nan))


def test_a_task_without_gain_has_no_share_and_is_named():
    conditions = conditions_table()
    conditions.loc[conditions["task"] == "vqa", "score"] = 1.0
    ax = retention_curves(sweep_table(), conditions=conditions).axes[0]
    assert "vqa" not in lines(ax)
    assert "caption" in lines(ax)
    assert [t.get_text() for t in ax.texts] == ["no clear gain by the picture:\nvqa"]
    alone = retention_curves(sweep_table(("vqa",)))  # the floor is depth 0
    assert lines(alone.axes[0])["vqa"].get_ydata() == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_a_gain_that_is_not_known_is_said_to_be_so():
    one = sweep_table(("vqa",), images=1)
    without_floor = sweep_table(("vqa",)).query("depth > 0")
    for sweep, conditions in ((one, conditions_table(("vqa",), 1)), (without_floor, None)):
        ax = retention_curves(sweep, conditions=conditions).axes[0]
        assert [t.get_text() for t in ax.texts] == ["gain not known:\nvqa"]
    mixed = sweep_table()
    mixed.loc[mixed["task"] == "vqa", "correct"] = np.nan
    ax = retention_curves(mixed).axes[0]
    assert [t.get_text() for t in ax.texts] == ["gain not known:\nvqa"]
    assert "caption" in lines(ax)


def test_shares_below_nothing_stay_inside_the_panel():
    conditions = conditions_table(("vqa",))
    conditions.loc[conditions["condition"] == "blind", "score"] = 0.5
    ax = retention_curves(sweep_table(("vqa",)), conditions=conditions).axes[0]
    assert lines(ax)["vqa"].get_ydata()[0] == pytest.approx(-1)
    assert ax.get_ylim()[0] < -1


def test_lines_of_other_conditions_are_of_the_same_images():
    few = sweep_table(("vqa",), images=2)
    conditions = conditions_table(("vqa",))
    conditions.loc[conditions["image"].isin(["i2", "i3"]), "score"] = 0.9
    scores = lines(retention_curves(few, conditions=conditions).axes[1])
    assert scores["no picture"].get_ydata() == pytest.approx([0.2, 0.2])
    lacking = conditions_table(("vqa",), images=1)
    with pytest.raises(ValueError, match="condition 'blind' of task 'vqa' lacks 1 of 2 images"):
        retention_curves(few, conditions=lacking)


@pytest.mark.parametrize("draw", [retention_curves, modes_compared])
def test_sweeps_without_answers_are_refused(draw):
    sweep = sweep_table(("vqa",)).assign(correct=np.nan, same=np.nan, output=None)
    with pytest.raises(ValueError, match="has no answers: run truncation_sweep with max_new_tok"):
        draw(sweep)


def test_divergence_leaves_out_the_full_model():
    kl, changed = kl_by_depth(tokens_table()).axes
    assert lines(kl)["new"].get_ydata() == pytest.approx([4, 3, 2, 1])
    assert lines(changed)["new"].get_ydata() == pytest.approx([1, 1, 0, 0])


def test_every_answer_counts_once_however_long():
    long = pd.concat([tokens_table(images=1).assign(sample="long", kl=8.0)] * 9)
    kl, _ = kl_by_depth(pd.concat([tokens_table(images=1), long])).axes
    assert lines(kl)["new"].get_ydata() == pytest.approx([6, 5.5, 5, 4.5])


def test_divergences_too_small_for_the_axis_lie_on_a_line_that_says_so():
    table = tokens_table()
    name = f"drawn here: {LEAST_KL:g} or less"
    assert name not in lines(kl_by_depth(table).axes[0])
    table.loc[table["depth"] == 3, "kl"] = 0.0
    ax = kl_by_depth(table).axes[0]
    assert lines(ax)["new"].get_ydata()[-1] == pytest.approx(LEAST_KL)
    assert lines(ax)[name].get_ydata() == pytest.approx([LEAST_KL, LEAST_KL])
    two = kl_by_depth(pd.concat([table, table.assign(task="other")])).axes[0]
    assert [x.get_label() for x in two.get_lines()] == ["new", "other", name]


def test_divergences_of_several_modes_or_one_depth_are_refused():
    with pytest.raises(ValueError, match="several modes"):
        kl_by_depth(pd.concat([tokens_table(), tokens_table(mode="freeze")]))
    with pytest.raises(ValueError, match="one depth"):
        kl_by_depth(tokens_table(depths=(2,)))


def test_modes_are_told_apart():
    modes = (("remove", "masked"), ("renumber", "masked"), ("remove", "physical"))
    fig = modes_compared(sweep_table(("vqa",), modes=modes[::-1]))
    assert next(iter(lines(fig.axes[0]))) == "remove: gone, positions kept"  # in any order of rows
    for ax in fig.axes:
        assert len(lines(ax)) == len({to_hex(x.get_color()) for x in ax.get_lines()}) == 3
        assert len({x.get_linestyle() for x in ax.get_lines()}) == 3
    assert lines(fig.axes[1])["remove, rows really dropped"].get_ydata()[-1] == 1


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (substitution_maps, grid_table, "source_layer"),
        (gap_curves, grid_table, "kl"),
        (retention_curves, sweep_table, "correct"),
        (modes_compared, sweep_table, "implementation"),
        (kl_by_depth, tokens_table, "same_top1"),
        (kl_by_depth, tokens_table, "sample"),
    ],
)
def test_tables_that_cannot_be_drawn_are_named(draw, table, column):
    with pytest.raises(ValueError, match=f"lacks column.*{column}"):
        draw(table().drop(columns=column))
    with pytest.raises(ValueError, match="no rows: pass what"):
        draw(table().iloc[:0])


def test_mixed_tables_are_refused():
    with pytest.raises(ValueError, match="several modes"):
        retention_curves(sweep_table(modes=(("remove", "masked"), ("freeze", "masked"))))
    with pytest.raises(ValueError, match="several tasks"):
        modes_compared(sweep_table())


def test_one_image_is_drawn_without_band():
    for fig in (
        gap_curves(grid_table(images=1)),
        substitution_maps(grid_table(images=1)),
        modes_compared(sweep_table(("vqa",), images=1)),
        retention_curves(sweep_table(images=1)),
        kl_by_depth(tokens_table(images=1)),
    ):
        assert fig.axes
