"""Comparing runs: what differs, whether beyond noise, and what cannot be compared."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdepth_utils import __main__ as command
from visdepth_utils.common.files import rows_text
from visdepth_utils.report.compare import (
    RULE,
    comparison_rows,
    comparison_text,
    judge,
    settings_that_differ,
)
from visdepth_utils.runs.records import annotate


def entry(claim: str, effect: float | None, lo: float | None, hi: float | None, **more) -> dict:
    return {
        "claim": claim,
        "model": "m",
        "verdict": "weaker",
        "effect": effect,
        "ci": [lo, hi],
        "n_images": 96,
        "thresholds": {"margin": 0.05},
        **more,
    }


def run(folder: Path, *entries: dict, **settings: object) -> Path:
    folder.mkdir()
    (folder / "claims.json").write_text(rows_text(entries))
    chosen = {"model": "m", "n_samples": 96, "seed": 0, **settings}
    notebooks = {"01_a": {"settings": chosen}, "04_b": {"settings": {**chosen, "n_samples": 48}}}
    annotate(folder, notebooks=notebooks, versions={"torch": "2"}, data={"hash": "d" * 64})
    return folder


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ((0.5, [0.4, 0.6]), (0.5, [0.4, 0.6]), "equal"),
        ((0.5, [0.4, 0.6]), (0.5, [0.3, 0.6]), "within noise"),
        ((0.5, [0.4, 0.6]), (0.55, [0.45, 0.65]), "within noise"),
        ((0.5, [0.4, 0.6]), (0.62, [0.49, 0.7]), "unclear"),
        ((0.5, [0.4, 0.6]), (0.6, [0.59, 0.61]), "unclear"),
        ((0.5, [0.4, 0.6]), (0.7, [0.6, 0.8]), "unclear"),  # they touch
        ((0.5, [0.4, 0.6]), (0.7, [0.61, 0.8]), "beyond noise"),
        ((0.5, [0.4, 0.6]), (0.1, [0.0, 0.2]), "beyond noise"),
        ((0.5, [0.4, 0.6]), (None, [None, None]), "not measured"),
        ((None, [None, None]), (None, [None, None]), "equal"),
        ((0.5, [0.4, None]), (0.6, [0.5, 0.7]), "no interval"),
        ((0.5, []), (0.6, []), "no interval"),
        ((0.5, []), (0.5, []), "equal"),
    ],
)
def test_the_rule(one: tuple, two: tuple, said: str) -> None:
    assert judge(*one, *two) == said
    assert judge(*two, *one) == said


BOUNDED = st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(sorted)


@given(BOUNDED, BOUNDED)
def test_beyond_noise_is_no_common_point(one: list[float], two: list[float]) -> None:
    said = judge(one[1], one[::2], two[1], two[::2])
    apart = max(one[0], two[0]) > min(one[2], two[2])
    assert (said == "beyond noise") == apart


def test_what_differs_is_listed(tmp_path: Path) -> None:
    parts = [{"measure": "kept", "estimate": 0.5, "lo": 0.4, "hi": 0.6}]
    moved = [{"measure": "kept", "estimate": 0.8, "lo": 0.7, "hi": 0.9}]
    one = run(
        tmp_path / "one",
        entry("C1", 0.5, 0.4, 0.6, details=parts),
        entry("C3", 1.0, 1.0, 1.0),
        entry("C4", 0.1, 0.0, 0.2),
    )
    two = run(
        tmp_path / "two",
        entry("C1", 0.9, 0.8, 1.0, details=moved, verdict="supported"),
        entry("C3", 1.0, 1.0, 1.0),
        entry("C5", None, None, None, thresholds={}),
        seed=1,
    )
    rows = {row["claim"]: row for row in comparison_rows(one, two)}
    assert rows["C1"]["verdicts"] == "weaker | supported"
    assert rows["C1"]["effect_2"] == "0.9 [0.8, 1]"
    found = {claim: row["difference"] for claim, row in rows.items()}
    assert found == {
        "C1": "beyond noise",
        "C3": "equal",
        "C4": "only in one",
        "C5": "only in two",
    }
    assert settings_that_differ(one, two) == [("seed", "0", "1")]
    text = comparison_text(one, two)
    assert "seed: 0 | 1" in text.splitlines()
    assert "1 verdicts differ, 1 effects differ beyond noise" in text
    assert "1 of 1 parts of verdicts differ beyond noise\n  C1 kept: 0.5 [0.4, 0.6] | 0.8 [" in text
    assert text.endswith(RULE)


def test_a_run_is_equal_to_itself(tmp_path: Path) -> None:
    one = run(tmp_path / "one", entry("C1", 0.5, 0.4, 0.6), entry("C3", None, None, None))
    assert [row["difference"] for row in comparison_rows(one, one)] == ["equal", "equal"]
    text = comparison_text(one, one)
    assert "same settings, weights, data, code and versions" in text
    assert "0 verdicts differ, 0 effects differ beyond noise" in text


def test_other_models_and_other_thresholds_are_compared_and_named(tmp_path: Path) -> None:
    one = run(tmp_path / "one", entry("C1", 0.5, 0.4, 0.6))
    other = entry("C1", 0.55, 0.4, 0.6, model="n", thresholds={"margin": 0.1}, n_images=48)
    two = run(tmp_path / "two", other, model="n")
    (row,) = comparison_rows(one, two)
    assert row["difference"] == "within noise, judged by other thresholds"
    assert row["images"] == "96 | 48"
    assert ("model", "m", "n") in settings_that_differ(one, two)


def test_several_models_are_paired_by_name(tmp_path: Path) -> None:
    pair = [entry("C1", i / 10, 0.0, 1.0, model=f"m{i}") for i in range(2)]
    one, two = run(tmp_path / "one", *pair), run(tmp_path / "two", *pair[::-1])
    assert [row["difference"] for row in comparison_rows(one, two)] == ["equal", "equal"]
    third = run(tmp_path / "third", entry("C1", 0.1, 0.0, 1.0, model="m1"))
    assert [row["difference"] for row in comparison_rows(one, third)] == ["equal", "only in one"]


def test_the_command_prints_it_and_names_a_missing_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = run(tmp_path / "one", entry("C1", 0.5, 0.4, 0.6))
    assert command.main(["compare", str(one), str(one)]) == 0
    assert "C1" in capsys.readouterr().out
    assert command.main(["compare", str(one), str(tmp_path / "none")]) == 2
    assert "no run" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "claims.json").write_text("[]")
    assert command.main(["compare", str(tmp_path / "empty"), str(tmp_path / "empty")]) == 0
    assert "no verdicts recorded" in capsys.readouterr().out
