"""Evaluation conditions, chance, and what is shipped: card, hashes and floors."""

import itertools
import json
import subprocess
import warnings
from dataclasses import replace

import pandas as pd
import pytest
from PIL import Image

from tests import tiny
from tests.strict import no_warnings
from training.minivlm import card
from training.minivlm.evaluate import misses
from visdepth_utils.data.tasks import Sample, Task, load_task, samples_and_budget
from visdepth_utils.measure.evaluation import accuracy_table, chance, evaluate
from visdepth_utils.measure.scores import score
from visdepth_utils.measure.truncation import truncation_sweep


class Reader:
    """Stands in for a model: answers with the colour of the picture's first pixel, or "red"."""

    name, thinking = "reader", ("", "")

    def generate(self, samples, max_new_tokens, batch_size=32, progress=None):
        names = {(255, 0, 0): "red", (0, 0, 255): "blue"}
        return [names[s.images[0].getpixel((0, 0))] if s.images else "red" for s in samples]


@pytest.fixture
def colours() -> Task:
    def one(i: int, colour: str) -> Sample:
        picture = Image.new("RGB", (4, 4), colour)
        return Sample(f"s{i}", f"i{i}", (picture,), "?", colour, colour, "vqa", kind="colour")

    return Task("vqa", [one(0, "red"), one(1, "red"), one(2, "blue"), one(3, "red")], 4, "test")


def test_conditions_change_only_the_picture(colours):
    full, blind, other = (evaluate(Reader(), colours, c) for c in ("full", "blind", "other"))
    assert full.score.mean() == 1
    assert blind.score.mean() == 0.75  # "red" is right three times of four
    assert other.score.mean() == 0.5  # the blue picture went to a red question and the other way
    for table in (full, blind, other):
        assert list(table["sample"]) == ["s0", "s1", "s2", "s3"]
        assert list(table["image"]) == ["i0", "i1", "i2", "i3"]


def test_unknown_condition_is_named(colours):
    with pytest.raises(ValueError, match="unknown condition 'half'"):
        evaluate(Reader(), colours, "half")


def test_chance_is_the_best_constant_per_kind(colours):
    assert chance(colours) == 0.75
    samples = [
        Sample("a", "i", (), "?", "yes", "yes", "reason", kind="compare", style="direct"),
        Sample("b", "i", (), "?", "no", "no", "reason", kind="compare", style="direct"),
        Sample("c", "i", (), "?", "2", "2", "reason", kind="count", style="direct"),
    ]
    assert chance(Task("reason", samples, 4, "test")) == pytest.approx(2 / 3)


@pytest.mark.parametrize("task", ["mcq", "vqa", "chart", "reason"])
def test_chance_of_the_frozen_sets_is_low(task):
    """A constant answer gets little: the sets cannot be answered without the picture."""
    assert chance(load_task(task)) < {"mcq": 0.36, "vqa": 0.25, "chart": 0.15, "reason": 0.56}[task]


def test_accuracy_table_and_misses():
    rows = [
        {"sample": str(i), "image": str(i), "task": t, "kind": "k", "style": s, "condition": c}
        | {"output": "", "score": score}
        for i in range(2)
        for t, s in (("mcq", "direct"), ("vqa", "direct"), ("caption", "direct"))
        + (("chart", "direct"), ("reason", "long"))
        for c, score in (("full", 0.95), ("blind", 0.2), ("other", 0.2))
    ]
    chances = {"mcq": 0.25, "vqa": 0.2, "caption": 0.0, "chart": 0.15, "reason (long)": 0.5}
    table = accuracy_table(pd.DataFrame(rows), chances)
    assert list(table.columns) == ["full", "blind", "other", "chance", "n"]
    assert (table.n == 2).all() and (table.full == 0.95).all()
    assert misses(table) == ["caption: 0.200 with another picture, chance is 0.000"]
    table.loc["mcq", "full"] = 0.5
    assert misses(table)[0] == "mcq: 0.500 is below the floor 0.9"


def test_the_card_says_what_the_files_say():
    assert (card.FOLDER / "README.md").read_text() == card.build()


def test_the_card_of_the_pretrained_decoder_says_what_the_files_say():
    assert (card.FOLDER / "smol" / "README.md").read_text() == card.build_smol()
    found = json.loads((card.FOLDER / "accuracy.json").read_text())["smol"]
    assert misses(pd.DataFrame(found["accuracy"]).T, "smol") == found["floors missed"]


@pytest.mark.parametrize("model", card.MODELS)
def test_accuracy_belongs_to_the_shipped_weights(model):
    from visdepth_utils.models.checkpoints import weights_hash

    found = json.loads((card.FOLDER / "accuracy.json").read_text())[model]
    assert found["weights_hash"] == weights_hash(card.FOLDER / model, "")


@pytest.mark.parametrize("model", card.MODELS)
def test_checkpoints_are_small_safetensors_in_bfloat16(model):
    from safetensors import safe_open

    folder = card.FOLDER / model
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))
    for path in folder.glob("*.safetensors"):
        assert path.stat().st_size < 16 * 2**20
        with safe_open(path, "pt") as file:
            assert {file.get_slice(k).get_dtype() for k in file.keys()} == {"BF16"}  # noqa: SIM118


def test_all_checkpoints_and_worlds_stay_small():
    size = lambda folder: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())  # noqa: E731
    assert size(card.FOLDER / "smol") <= 30 * 10**6
    assert size(card.FOLDER) <= 64 * 10**6
    assert size(card.FOLDER.parent / "worlds") <= 12 * 10**6


@pytest.mark.parametrize("model", card.MODELS)
def test_recorded_misses_are_those_of_the_recorded_accuracy(model):
    found = json.loads((card.FOLDER / "accuracy.json").read_text())[model]
    assert misses(pd.DataFrame(found["accuracy"]).T) == found["floors missed"]


@pytest.mark.parametrize("model", [m for m in card.MODELS if m.startswith("base")])
def test_the_base_models_meet_their_floors(model):
    found = json.loads((card.FOLDER / "accuracy.json").read_text())[model]
    assert found["floors missed"] == []


@pytest.mark.parametrize(
    ("tail", "marks"),
    [
        ("<think>\n", ("<think>", "<think>")),
        ("<think>\n\n</think>\n\n", ("", "")),
        ("{% if false %}<think>{% endif %}", ("", "<think>")),
        ("", ("", "")),
    ],
)
def test_a_budget_too_small_for_thinking_is_said_before(llava, monkeypatch, tail, marks):
    template = llava.processor.chat_template
    monkeypatch.setattr(llava.processor, "chat_template", template + tail)
    vlm = replace(llava)  # nothing remembered of its template
    assert vlm.thinking == marks
    samples = [tiny.sample(i) for i in range(2)]
    task = Task("vqa", samples, 3, "tiny")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        table = evaluate(vlm, task)
        again = truncation_sweep(vlm, task, depths=[vlm.n_layers])
    about = [str(one.message) for one in said if "thinks before it answers" in str(one.message)]
    assert len(about) == (2 if marks[1] else 0)
    assert all("a budget of 3 tokens" in one and "=512 or more" in one for one in about)
    for output in (*table["output"], *again["output"]):
        assert output.startswith("<think>") == bool(marks[0])
        if marks[0]:
            right = replace(samples[0], answer=output.removeprefix("<think>"))
            assert (score(right, output), score(right, output + "</think>" + right.answer)) == (
                0,
                1,
            )
    with no_warnings():
        assert samples_and_budget(vlm, task, 512) == (samples, 512)


def git(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], cwd=card.FOLDER, capture_output=True, text=True)


@pytest.mark.skipif(
    git("cat-file", "-e", "40218ab^{commit}").returncode != 0, reason="no whole history here"
)
def test_the_history_is_what_the_card_and_the_rules_say_of_it():
    """An interim `base` on which C1 was shown, changes of the recipe, then the final weights."""
    commits = ["40218ab", "2b1ddb4", "06a0cde", "78408b8"]
    told = card.TEXT + (card.FOLDER.parent / "claims.yaml").read_text()
    assert all(commit in told for commit in commits)
    for earlier, later in itertools.pairwise([*commits, "HEAD"]):
        assert git("merge-base", "--is-ancestor", earlier, later).returncode == 0
    weights = [git("rev-parse", f"{c}:./base/model.safetensors").stdout for c in commits]
    shipped = git("hash-object", "base/model.safetensors").stdout
    assert weights[-1] == shipped and shipped not in weights[:-1]
    notebook = "notebooks/01_image_tokens_stabilise.ipynb"
    assert "not supported" in git("show", f"{commits[0]}:{notebook}").stdout
