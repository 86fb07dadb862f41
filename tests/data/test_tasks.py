"""Tasks: which samples are chosen, the image controls, and every error a user can run into."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from visdepth_utils.data.samples import WORLDS
from visdepth_utils.data.tasks import (
    EMBEDDED,
    MissingTask,
    available_tasks,
    load_task,
    with_other_image,
    without_image,
)


def test_all_samples_in_file_order(worlds: Path) -> None:
    task = load_task("vqa", source=worlds)
    assert [s.id for s in task.samples[:3]] == [
        "vqa-0-0-direct",
        "vqa-0-1-direct",
        "vqa-1-0-direct",
    ]
    assert len(task) == 12
    first, second = task.samples[:2]
    assert first.images[0] is second.images[0] and first.images[0].mode == "RGB"
    assert (first.choices, second.choices) == ((), ("red", "blue"))
    assert task.max_new_tokens == 6


@pytest.mark.parametrize("n", [1, 6, 7, 12])
def test_pictures_repeat_only_after_each_was_used(worlds: Path, n: int) -> None:
    samples = load_task("vqa", n=n, source=worlds).samples
    assert len({s.id for s in samples}) == n
    assert len({s.image_id for s in samples}) == min(n, 6)
    assert len({s.image_id for s in samples[:6]}) == min(n, 6)


def test_choice_is_deterministic_and_nested(worlds: Path) -> None:
    def ids(**kwargs: int) -> list[str]:
        return [s.id for s in load_task("vqa", source=worlds, **kwargs).samples]

    assert ids(n=8) == ids(n=8)
    assert ids(n=8)[:5] == ids(n=5)
    assert ids(n=8) != ids(n=8, seed=1)


def test_styles(worlds: Path) -> None:
    assert {s.style for s in load_task("reason", source=worlds).samples} == {"long"}
    short = load_task("reason", source=worlds, style="short")
    assert {s.style for s in short.samples} == {"short"} and short.max_new_tokens == 40
    with pytest.raises(ValueError, match="no style 'tiny'; it has direct, long, short"):
        load_task("reason", source=worlds, style="tiny")


def test_content_hash_sees_text_and_pixels(worlds: Path) -> None:
    task = load_task("vqa", n=3, source=worlds)
    assert task.content_hash == load_task("vqa", n=3, source=worlds).content_hash
    other = with_other_image(task.samples)
    for samples in (other, task.samples[:2], [replace(s, prompt="?") for s in task.samples]):
        assert replace(task, samples=samples).content_hash != task.content_hash


def test_errors_are_one_line_and_name_the_mend(worlds: Path, tmp_path: Path) -> None:
    cases = [
        (ValueError, {"name": "vqq"}, "unknown task 'vqq': known tasks are mcq, vqa, chart"),
        (ValueError, {"name": "blink"}, "tables with unlike columns"),
        (ValueError, {"name": "vqa", "split": "test"}, "split: not for data in the layout"),
        (ValueError, {"name": "vqa", "n": 13}, "n=13 .* has 12: lower n"),
        (ValueError, {"name": "vqa", "n": 0}, "n=0 .* has 12"),
        (MissingTask, {"name": "mcq"}, r"no task 'mcq' \(it holds vqa, reason\): give a source"),
    ]
    for error, kwargs, message in cases:
        with pytest.raises(error, match=message) as caught:
            load_task(source=worlds, **kwargs)
        assert "\n" not in str(caught.value)


def test_missing_and_broken_pictures_name_the_sample(worlds: Path) -> None:
    images = pd.read_parquet(worlds / "images.parquet")
    images[images["image_id"] != "p3"].to_parquet(worlds / "images.parquet")
    with pytest.raises(ValueError, match="sample 'vqa-3-0-direct': image 'p3' is missing"):
        load_task("vqa", source=worlds)
    images.at[4, "image"] = {"bytes": images.at[4, "image"]["bytes"][:60], "path": None}
    images.to_parquet(worlds / "images.parquet")
    with pytest.raises(
        ValueError, match="sample 'vqa-4-0-direct': image 'p4' .* cannot be decoded"
    ):
        load_task("vqa", source=worlds)
    (worlds / "images.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="images.parquet"):
        load_task("vqa", source=worlds)


def test_missing_column_is_named(worlds: Path) -> None:
    pd.read_parquet(worlds / "vqa.parquet").drop(columns="answer").to_parquet(
        worlds / "vqa.parquet"
    )
    with pytest.raises(ValueError, match="lacks the column.*answer"):
        load_task("vqa", source=worlds)


def test_available_tasks_are_those_the_data_has(worlds: Path) -> None:
    found = available_tasks(n=3, source=worlds)
    assert {name: len(task) for name, task in found.items()} == {"vqa": 3, "reason": 3}
    for name in ("vqa", "reason"):
        (worlds / f"{name}.parquet").unlink()
    with pytest.raises(MissingTask, match="it holds none"):
        available_tasks(source=worlds)


def test_without_image(worlds: Path) -> None:
    samples = load_task("vqa", source=worlds).samples
    blind = without_image(samples)
    assert all(s.images == () for s in blind)
    assert [(s.id, s.prompt, s.image_id) for s in blind] == [
        (s.id, s.prompt, s.image_id) for s in samples
    ]


@pytest.mark.parametrize("seed", range(5))
def test_with_other_image_is_a_derangement_over_pictures(worlds: Path, seed: int) -> None:
    samples = load_task("vqa", source=worlds).samples
    owner = {s.images[0].tobytes(): s.image_id for s in samples}
    given = {
        s.image_id: {
            owner[t.images[0].tobytes()] for t in with_other_image(samples, seed) if t.id == s.id
        }
        for s in samples
    }
    assert all(len(got) == 1 and mine not in got for mine, got in given.items())
    assert set.union(*given.values()) == set(given)
    assert [s.id for s in with_other_image(samples, seed)] == [s.id for s in samples]


def test_with_other_image_needs_two_pictures(worlds: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 different images, got 1"):
        with_other_image(load_task("vqa", source=worlds).samples[:2])


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_worlds_load(name: str) -> None:
    if not (WORLDS / f"{name}.parquet").is_file():
        pytest.skip("data/worlds is not generated")
    task = load_task(name, n=4)
    assert len({s.image_id for s in task.samples}) == 4
    assert all(s.images[0].size == (64, 64) and s.prompt and s.answer for s in task.samples)
    assert len(load_task(name)) >= 400
