"""Figures: what is drawn, in which colours, how large; and the small displays."""

import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.pylabtools import print_figure
from matplotlib.colors import to_hex
from PIL import Image

from tests import tiny
from visdepth_utils.data.tasks import Sample, Task
from visdepth_utils.models.load import load_vlm
from visdepth_utils.plots.display import environment_facts, picture_grid, sample_table, token_strip
from visdepth_utils.plots.geometry import accuracy_bars, depth_curves
from visdepth_utils.plots.style import COLOURS
from visdepth_utils.runs.run import open_run

METRICS = ("entropy", "id_twonn", "curvature")


def bands(modalities=("image", "text"), shift=0.0):
    rows = []
    for modality in modalities:
        for metric, base in zip(METRICS, (0.7, 20.0, 95.0), strict=True):
            for layer in range(13):
                mean = base * (1 + 0.1 * np.exp(-layer)) + shift
                rows.append((modality, layer, metric, mean, mean * 0.98, mean * 1.02, 48))
    columns = ["modality", "layer", "metric", "mean", "lo", "hi", "n_images"]
    return pd.DataFrame(rows, columns=columns)


def texts(fig):
    found = [t.get_text() for ax in fig.axes for t in ax.texts]
    found += [ax.get_title() for ax in fig.axes]
    for legend in fig.legends:
        found += [t.get_text() for t in legend.get_texts()] + [legend.get_title().get_text()]
    return found


def png_bytes(fig):
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.tell()


@pytest.fixture
def figure():
    return depth_curves(
        bands(),
        controls={"random-init": bands(("image",), 0.02), "random-init decoder": bands(("image",))},
        stabilises={"entropy": 2, "id_twonn": 3, "curvature": np.nan},
        early=3,
    )


def test_image_and_text_keep_their_colours_and_controls_are_grey_and_broken(figure):
    ax = figure.axes[0]
    lines = {line.get_label(): line for line in ax.get_lines()}
    for modality, colour in COLOURS.items():
        assert to_hex(lines[f"{modality} tokens"].get_color()) == colour.lower()
        assert lines[f"{modality} tokens"].get_linestyle() == "-"
    grey = lines["random-init, image"]
    red, green, blue = (grey.get_color()[i : i + 2] for i in (1, 3, 5))
    assert red == green == blue
    assert grey.get_linestyle() == "--"


def test_drawn_values_are_the_means(figure):
    line = next(x for x in figure.axes[2].get_lines() if x.get_label() == "image tokens")
    expected = bands().query("metric == 'curvature' and modality == 'image'")["mean"]
    assert np.allclose(line.get_ydata(), expected)


def test_nulls_bands_and_stabilisation_are_named(figure):
    found = "\n".join(texts(figure))
    assert "90: unrelated" in found
    assert "120: noise" in found
    assert "95% interval of the mean, by image" in found
    assert "settled from here" in found
    assert "early third" in found
    labels = [[line.get_label() for line in ax.get_lines()] for ax in figure.axes]
    marked = [any("settled" in name for name in panel) for panel in labels]
    assert marked == [True, True, False]  # no mark where no layer was found


def test_figures_are_small_closed_and_leave_the_style_alone(figure):
    before = plt.rcParams["axes.grid"]
    assert png_bytes(figure) < 80_000
    assert plt.get_fignums() == []
    depth_curves(bands(("image",)))
    assert plt.rcParams["axes.grid"] == before


def test_bands_without_a_column_or_metric_are_refused_by_name():
    with pytest.raises(ValueError, match="lacks column.*hi"):
        depth_curves(bands().drop(columns="hi"))
    with pytest.raises(ValueError, match="no metric 'id_mle'"):
        depth_curves(bands(), metrics=["id_mle"])
    with pytest.raises(ValueError, match="control 'random-init' has no metric"):
        depth_curves(bands(), controls={"random-init": bands().query("metric == 'entropy'")})


def results():
    rows = [
        (f"s{i}", f"i{i}", task, condition, float(i % 4 < hits))
        for task in ("mcq", "vqa")
        for condition, hits in (("full", 3), ("blind", 1), ("other", 2))
        for i in range(16)
    ]
    return pd.DataFrame(rows, columns=["sample", "image", "task", "condition", "score"])


def test_accuracy_bars_show_scores_chance_and_conditions():
    fig = accuracy_bars(results(), chances={"mcq": 0.25, "vqa": 0.1})
    heights = [round(bar.get_height(), 3) for bars in fig.axes[0].containers for bar in bars]
    assert heights == [0.75, 0.75, 0.25, 0.25, 0.5, 0.5]
    found = texts(fig)
    assert {"its own picture", "no picture", "another picture", "chance"} <= set(found)
    assert png_bytes(fig) < 80_000


def test_accuracy_bars_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="'upside down' is unknown"):
        accuracy_bars(results().replace({"condition": {"full": "upside down"}}))
    with pytest.raises(ValueError, match="lacks column.*score"):
        accuracy_bars(results().drop(columns="score"))


def test_picture_grid_draws_one_line_less_than_squares_each_way():
    picture = Image.new("RGB", (64, 64), "red")
    fig = picture_grid([picture, picture], 64, ["one", "two"])
    assert [len(ax.get_lines()) for ax in fig.axes] == [14, 14]
    wide = Image.new("RGB", (100, 60), "red")
    fig = picture_grid([wide, picture, picture], [60, 60, 67])  # 6 x 10; no grid of square cells
    assert [len(ax.get_lines()) for ax in fig.axes] == [14, 0, 0]
    with pytest.raises(ValueError, match="1 numbers of tokens for 2 pictures"):
        picture_grid([picture, picture], [64])


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    vlm = load_vlm(tiny.llava(tmp_path_factory.mktemp("shown"), size=32, patch=8))
    picture = Image.new("RGB", (32, 32), "blue")
    sample = Sample("a", "a", (picture,), "what colour is it ?", "blue", "blue", "vqa")
    return vlm, sample


def test_token_strip_numbers_image_tokens_and_colours_types(shown):
    vlm, sample = shown
    enc = vlm.encode([sample], with_reference=True)
    fig = token_strip(vlm, sample)
    boxes = fig.axes[0].patches
    assert len(boxes) == int(enc.inputs["attention_mask"].sum())
    colours = [to_hex(box.get_facecolor()) for box in boxes]
    assert colours.count(COLOURS["image"].lower()) == int(enc.is_image.sum()) == 16
    assert colours.count(COLOURS["text"].lower()) == int(enc.is_text.sum())
    words = [t.get_text() for t in fig.axes[0].texts]
    assert {"0", "15", "blue"} <= set(words)


def test_sample_table_pairs_questions_with_answers(shown):
    _, sample = shown
    task = Task("vqa", [sample], 4, "embedded")
    rows = pd.DataFrame({"sample": ["a"], "output": ["red <b>"], "score": [0.0]})
    table = sample_table(task, rows)
    assert table.iloc[0].tolist() == ["vqa", "what colour is it ?", "blue", "red <b>", 0.0]
    with pytest.raises(ValueError, match="'a' has no row"):
        sample_table(task, rows.assign(sample="b"))


def test_environment_facts_are_all_well_here():
    lines = environment_facts().splitlines()
    assert len(lines) >= 5
    assert all(line.endswith("yes") for line in lines)
    assert any(line.startswith("torch>=") for line in lines)


HOSTILE = """
text.usetex: True
text.parse_math: False
font.size: 30
font.family: monospace
axes.unicode_minus: False
axes.facecolor: black
axes.grid: False
lines.linewidth: 9
figure.facecolor: red
figure.constrained_layout.use: True
savefig.facecolor: green
savefig.transparent: True
savefig.dpi: 20
savefig.bbox: tight
path.sketch: 5, 50, 5
"""


def test_a_figure_is_the_same_under_any_matplotlibrc(tmp_path):
    """A reader's own settings, LaTeX without LaTeX among them: drawn, saved, shown and restored."""
    file = tmp_path / "matplotlibrc"
    file.write_text(HOSTILE)
    hostile = matplotlib.rc_params_from_file(file, fail_on_error=True, use_default_template=False)
    picture = Image.new("RGB", (8, 8))

    def drawn(name):
        run, out = open_run(model="data/minivlm/base", out_dir=tmp_path / name), []
        figures = {
            "curves": depth_curves(bands(shift=-97.0), title="-1"),
            "bars": accuracy_bars(results()),
            "pictures": picture_grid([picture, picture], 4, ["-1 or $5 ?", "b"]),
        }
        for title, fig in figures.items():
            run.figure(fig, title)
            out += [file.read_bytes() for file in sorted(run.folder.glob(f"figures/{title}.*"))]
            with plt.rc_context({"axes.unicode_minus": True}):  # read when a notebook shows it
                out.append(print_figure(fig))
        return out

    plain = drawn("plain")
    with plt.rc_context(hostile):
        before = dict(plt.rcParams)
        assert [a == b for a, b in zip(plain, drawn("hostile"), strict=True)] == [True] * 9
        assert dict(plt.rcParams) == before
