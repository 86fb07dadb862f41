"""What a run keeps for the explorer: which samples, how small, and which words changed."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import tiny
from visdepth_utils.data.samples import Sample
from visdepth_utils.report.explorer import differences, gallery, read_outputs
from visdepth_utils.runs import outputs
from visdepth_utils.runs.outputs import keep_outputs

OUTPUTS = {0: "a blue square", 1: None, 2: "a red square ."}


def sample(i: int, task: str = "vqa", side: int = 24) -> Sample:
    return Sample(f"s{i}", f"p{i}", (tiny.picture(i, side),), f"what {i} ?", "red", "red", task)


def table(n: int = 3, task: str = "vqa", style: str = "direct") -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "sample": f"s{i}",
                "image": f"p{i}",
                "task": task,
                "style": style,
                "mode": "remove",
                "depth": depth,
                "output": output,
                "correct": float(depth == 2),
                "kl": np.nan if depth == 1 else 0.5 * (2 - depth),
            }
            for i in range(n)
            for depth, output in sorted(OUTPUTS.items(), reverse=True)
        ]
    )


def test_a_table_comes_back_with_its_changed_words(tmp_path: Path) -> None:
    (file,) = keep_outputs(tmp_path, table(), [sample(i) for i in range(3)])
    assert file == tmp_path / "explorer" / "vqa-direct-remove.json"
    (entry,) = read_outputs(tmp_path)
    assert (entry["name"], list(entry["modes"]), entry["measured"]) == ("vqa", ["remove"], 3)
    assert "first answer token" in entry["modes"]["remove"]
    first = entry["samples"][0]
    assert (first["prompt"], first["reference"]) == ("what 0 ?", "red")
    assert first["rows"]["remove"] == [
        {
            "depth": 0,
            "words": ["a", "blue", "square"],
            "added": [1],
            "lost": [1, 3],
            "score": 0.0,
            "kl": 1.0,
        },
        {"depth": 1, "words": [], "added": [], "lost": [0, 1, 2, 3], "score": 0.0, "kl": None},
        {
            "depth": 2,
            "words": ["a", "red", "square", "."],
            "added": [],
            "lost": [],
            "score": 1.0,
            "kl": 0.0,
        },
    ]


def test_tasks_and_styles_have_files_of_their_own_and_controls_are_left_out(
    tmp_path: Path,
) -> None:
    chains = table(2, "reason", "long").rename(columns={"kl": "kl_chain"})
    control = chains.assign(control="run again", output="never")
    frame = pd.concat([table(2), table(2, "mcq"), chains.assign(control=""), control])
    frame["control"] = frame["control"].fillna("")
    samples = [sample(i, task) for task in ("vqa", "mcq", "reason") for i in range(2)]
    keep_outputs(tmp_path, frame[frame["task"] != "reason"], samples)
    keep_outputs(tmp_path, frame[frame["task"] == "reason"].drop(columns="kl"), samples)
    found = {entry["name"]: entry for entry in read_outputs(tmp_path)}
    assert set(found) == {"mcq", "reason, long chains", "vqa"}
    assert "never" not in json.dumps(found)
    assert "chain's tokens" in found["reason, long chains"]["modes"]["remove"]


def test_interventions_of_one_sample_stand_side_by_side_and_the_gallery_shows_them(
    tmp_path: Path,
) -> None:
    frozen = table().assign(mode="freeze", output="a red square .")
    early = table().assign(mode="freeze other image")
    early = early[early["depth"] != 1]
    keep_outputs(tmp_path, table(), [sample(i) for i in range(3)])
    keep_outputs(tmp_path, pd.concat([early, frozen]), [sample(i) for i in range(3)])
    outputs = read_outputs(tmp_path)
    (entry,) = outputs
    assert list(entry["modes"]) == ["remove", "freeze", "freeze other image"]
    rows = entry["samples"][0]["rows"]
    assert {mode: [row["depth"] for row in found] for mode, found in rows.items()} == {
        "remove": [0, 1, 2],
        "freeze": [0, 1, 2],
        "freeze other image": [0, 2],
    }
    first, second = gallery(outputs)
    assert (first["sample"], second["sample"], first["depth"]) == (0, 1, 1)
    assert first["full"] == "a red square ."
    assert [row["words"] for _, row in first["said"]] == [[], ["a", "red", "square", "."]]
    keep_outputs(tmp_path, table().assign(output="as ever"), [sample(i) for i in range(3)])
    assert gallery(read_outputs(tmp_path)) == []  # nothing changes: nothing to show


def test_token_by_token_divergence_takes_the_place_of_the_first_tokens(tmp_path: Path) -> None:
    tokens = pd.DataFrame(
        [
            {"task": "vqa", "sample": "s0", "mode": "remove", "depth": depth, "kl": kl}
            for depth in (0, 1, 2)
            for kl in (0.0, float(2 - depth))
        ]
    )
    keep_outputs(tmp_path, table(2), [sample(0), sample(1)], tokens)
    (entry,) = read_outputs(tmp_path)
    assert "expected text" in entry["modes"]["remove"]
    found = [[row["kl"] for row in one["rows"]["remove"]] for one in entry["samples"]]
    assert found == [[1.0, 0.5, 0.0], [None, None, None]]
    keep_outputs(tmp_path, table(1), [sample(0)], tokens.assign(mode="freeze"))
    (entry,) = read_outputs(tmp_path)
    assert "first answer token" in entry["modes"]["remove"]  # those of another mode do not count


def test_the_first_samples_are_kept_by_number_and_by_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [sample(i) for i in range(20)]
    keep_outputs(tmp_path, table(20), samples)
    (entry,) = read_outputs(tmp_path)
    assert [one["sample"] for one in entry["samples"]] == [f"s{i}" for i in range(12)]
    assert entry["measured"] == 20
    monkeypatch.setattr(outputs, "MAX_BYTES", 1)
    keep_outputs(tmp_path, table(20), samples)
    assert [one["sample"] for one in read_outputs(tmp_path)[0]["samples"]] == ["s0"]


@pytest.mark.parametrize(("side", "kind", "width"), [(24, "png", 24), (900, "jpeg", 320)])
def test_pictures_are_small(tmp_path: Path, side: int, kind: str, width: int) -> None:
    keep_outputs(tmp_path, table(1), [sample(0, side=side)])
    (picture,) = read_outputs(tmp_path)[0]["samples"][0]["pictures"]
    head, _, data = picture["uri"].partition(",")
    assert head == f"data:image/{kind};base64"
    assert picture["width"] == width
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (width, width)
        if kind == "png":
            assert image.tobytes() == tiny.picture(0, side).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (table().drop(columns="output"), r"lacks column\(s\) output"),
        (table(4), "sample 's3' of task 'vqa' is not among the samples"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keep_outputs(tmp_path, frame, [sample(i) for i in range(3)])


@pytest.mark.parametrize("text", ["[", "[]", "{}", '[{"task": "a"}]', "[1]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "explorer").mkdir()
    (tmp_path / "explorer" / "vqa-direct.json").write_text(text)
    with pytest.raises(ValueError, match=r"vqa-direct\.json is not readable"):
        read_outputs(tmp_path)


WORDS = st.lists(st.sampled_from("abcd"), max_size=8)


@given(WORDS, WORDS)
def test_without_the_changed_words_both_texts_are_equal(words: list[str], full: list[str]) -> None:
    added, lost = differences(words, full)
    left = [word for i, word in enumerate(words) if i not in added]
    right = [word for i, word in enumerate(full) if i not in lost]
    assert left == right
    assert (not added and not lost) == (words == full)
