"""Small things to look at: token grids, token sequences, answers, the environment."""

import math
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from packaging.requirements import Requirement
from PIL import Image

from visdepth_utils.plots.style import COLOURS, DPI

if TYPE_CHECKING:
    from visdepth_utils.data.tasks import Sample, Task
    from visdepth_utils.models.vlm import VLM

OTHER = "#d9d9d9"
NUMERIC = ("numpy", "pandas", "scikit-dimension", "scipy", "torch", "transformers")


def environment_facts() -> str:
    """Whether the packages that make numbers fit this package's own requirements.

    One line each: the requirement, and yes or the version found. Equal on every machine where all
    is well.
    """
    lines = {"python>=3.11": "yes" if sys.version_info >= (3, 11) else sys.version.split()[0]}
    for text in requires("visdepth-utils") or []:
        need = Requirement(text)
        if need.name in NUMERIC and not need.marker:
            try:
                found = version(need.name)
            except PackageNotFoundError:
                found = "missing"
            fits = found != "missing" and need.specifier.contains(found, prereleases=True)
            lines[f"{need.name}{need.specifier}"] = "yes" if fits else found
    return "\n".join(f"{what:<28}{says}" for what, says in lines.items())


def picture_grid(
    images: Sequence[Image.Image], n_tokens: int | Sequence[int], titles: Sequence[str] = ()
) -> Figure:
    """Draw pictures with the squares that become image tokens, ``n_tokens`` per picture or of each.

    A number that makes no grid of nearly square cells on its picture (row ends or tiles are counted
    too) is not drawn. ValueError: no pictures, or not one number for each.
    """
    counts = [n_tokens] * len(images) if isinstance(n_tokens, int) else list(n_tokens)
    if not images or len(counts) != len(images):
        raise ValueError(f"{len(counts)} numbers of tokens for {len(images)} pictures")
    with plt.style.context(["default", {"figure.dpi": DPI}]):
        fig, axes = plt.subplots(1, len(images), figsize=(2.4 * len(images), 2.6), squeeze=False)
        for i, (ax, image) in enumerate(zip(axes[0], images, strict=True)):
            ax.imshow(image, interpolation="nearest")
            rows, columns = _cells(counts[i], image.width / image.height)
            line = {"color": "white", "lw": 0.7, "alpha": 0.8}
            for k in range(1, columns):
                ax.axvline(k * image.width / columns - 0.5, **line)
            for k in range(1, rows):
                ax.axhline(k * image.height / rows - 0.5, **line)
            title = textwrap.fill(titles[i], 38) if i < len(titles) else ""
            ax.set_title(title, fontsize=8, parse_math=False)  # "$5 or $6" is no formula
            ax.set_axis_off()
        fig.tight_layout()
        plt.close(fig)
    return fig


def _cells(n_tokens: int, shape: float, slack: float = 1.5) -> tuple[int, int]:
    """Rows and columns of n cells that are most nearly square; (1, 1) if they are far from it."""
    pairs = [(k, n_tokens // k) for k in range(1, n_tokens + 1) if n_tokens % k == 0]

    def stretch(pair: tuple[int, int]) -> float:
        ratio = shape * pair[0] / pair[1]
        return max(ratio, 1 / ratio)

    best = min(pairs, key=stretch, default=(1, 1))
    return best if stretch(best) <= slack else (1, 1)


def token_strip(
    vlm: "VLM", sample: "Sample", per_row: int = 20, with_reference: bool = True
) -> Figure:
    """Draw the whole token sequence of a sample, one box per token, coloured by type.

    Image tokens carry their number, others their text. ``with_reference`` appends the expected
    answer, as the measurements do.
    """
    enc = vlm.encode([sample], with_reference=with_reference)
    keep = enc.inputs["attention_mask"][0].bool().cpu()
    ids = enc.inputs["input_ids"][0].cpu()[keep].tolist()
    image, text = enc.is_image[0].cpu()[keep].tolist(), enc.is_text[0].cpu()[keep].tolist()
    words = vlm.tokenizer.convert_ids_to_tokens(ids)
    rows = math.ceil(len(ids) / per_row)
    with plt.style.context(["default", {"figure.dpi": DPI}]):
        fig, ax = plt.subplots(figsize=(10, 0.24 * rows + 0.35))
        seen = 0
        for i, word in enumerate(words):
            x, y = i % per_row, -(i // per_row)
            colour = COLOURS["image"] if image[i] else COLOURS["text"] if text[i] else OTHER
            alpha = 0.35 if text[i] or image[i] else 0.8
            ax.add_patch(Rectangle((x, y), 0.96, 0.9, color=colour, alpha=alpha, lw=0))
            shown = str(seen) if image[i] else word[:11]
            seen += image[i]
            middle = {"ha": "center", "va": "center", "fontsize": 6.2, "parse_math": False}
            ax.text(x + 0.48, y + 0.42, shown, **middle)
        for name, colour in {**COLOURS, "neither (specials)": OTHER}.items():
            label = f"{name} tokens" if name in COLOURS else name
            ax.scatter([], [], marker="s", color=colour, alpha=0.6, label=label)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
        ax.set(xlim=(0, per_row), ylim=(-rows + 0.95, 1))
        ax.set_axis_off()
        fig.tight_layout()
        plt.close(fig)
    return fig


def sample_table(task: "Task", results: pd.DataFrame, n: int = 1, width: int = 90) -> pd.DataFrame:
    """Put the first n questions of a task beside the expected and the given answers.

    Columns ``task, question, expected, answer of the model, score``. ``results``: ``evaluate`` on
    the task, condition "full"; ValueError if a sample has no row in them. Texts are cut at
    ``width``.
    """
    outputs = results.drop_duplicates("sample").set_index("sample")
    rows = []
    for sample in task.samples[:n]:
        if sample.id not in outputs.index:
            raise ValueError(
                f"sample {sample.id!r} has no row in the results: evaluate the same task"
            )
        row = outputs.loc[sample.id]
        texts = (sample.prompt, sample.reference, str(row["output"]))
        texts = [textwrap.shorten(text, width) for text in texts]
        rows.append((task.name, *texts, round(float(row["score"]), 2)))
    columns = ["task", "question", "expected", "answer of the model", "score"]
    return pd.DataFrame(rows, columns=columns)
