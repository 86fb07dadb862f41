"""The report's sections: which figures and tables belong to a claim, and how numbers are shown."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from visdepth_utils import __main__ as command
from visdepth_utils.claims import load_claims
from visdepth_utils.report.sections import claim_sections, flat_rows, shown_table
from visdepth_utils.store.entries import annotate
from visdepth_utils.store.files import rows_text
from visdepth_utils.verdicts import Verdict

FIGURES = [{"name": name} for name in ("00_accuracy", "04_modes", "04_retention", "05_tokens")]


def verdict(claim: str, **more: object) -> dict:
    given = {
        "claim": claim,
        "statement": "s",
        "model": "m",
        "verdict": "weaker",
        "effect": 0.25,
        "ci": (0.1, float("nan")),
        "n_images": 48,
        "control_effect": float("nan"),
        "thresholds": {"contrast": {"value": 0.05}},
        "notebook": f"{claim[1:]:>02}_x",
        "reason": "r",
        "details": pd.DataFrame({"measure": ["a"], "estimate": [1 / 3], "lo": [np.nan]}),
        "controls": pd.DataFrame({"control": ["b"], "effect": [np.inf], "shown": [True]}),
    }
    return Verdict(**{**given, **more}).to_dict()


def test_a_verdict_keeps_its_tables_as_plain_rows() -> None:
    entry = json.loads(json.dumps(verdict("C4"), allow_nan=False))
    third = pytest.approx(1 / 3, abs=1e-15)
    assert entry["details"] == [{"measure": "a", "estimate": third, "lo": None}]
    assert entry["controls"] == [{"control": "b", "effect": None, "shown": True}]
    assert verdict("C4", details=pd.DataFrame())["details"] == []
    lines = rows_text([entry]).splitlines()
    assert sum('"measure"' in line for line in lines) == 1
    assert len(lines) < 35


def test_figures_go_to_the_claim_of_their_notebook(tmp_path: Path) -> None:
    entries = [verdict("C4"), verdict("C99"), verdict("C4", model="n")]
    (tmp_path / "claims.json").write_text(rows_text(entries))
    used = {"n_samples": 96}
    annotate(tmp_path, notebooks={"04_truncation_is_task_dependent": {"settings": used}})
    found = {section["claim"]: section for section in claim_sections(tmp_path, FIGURES)}
    assert list(found) == ["C4", "C5", "C99"]  # C5 has a figure and no verdict
    assert [figure["name"] for figure in found["C4"]["figures"]] == ["04_modes", "04_retention"]
    assert [row["model"] for row in found["C4"]["verdicts"]] == ["m", "n"]
    assert found["C4"]["verdicts"][0]["thresholds"] == [("contrast / value", "0.05")]
    assert found["C4"]["settings"] == [("n_samples", "96")]
    registered = load_claims()["claims"]
    assert found["C4"]["title"] == registered["C4"]["title"]
    assert not found["C4"]["quoted"]
    assert found["C5"]["quoted"]
    assert found["C5"]["words"] == registered["C5"]["quote"]
    assert found["C5"]["verdicts"] == []
    assert (found["C99"]["title"], found["C99"]["figures"]) == ("", [])


def test_a_table_shows_an_estimate_with_its_bounds() -> None:
    rows = [
        {"measure": "a", "label": "", "estimate": 1 / 3, "lo": 0.1, "hi": None, "margin": None},
        {"measure": "b", "label": "", "estimate": None, "lo": None, "hi": None, "margin": None},
    ]
    shown = shown_table(rows)
    assert shown["head"] == ["measure", "estimate [bounds]"]
    assert shown["body"] == [
        [("a", False), ("0.333 [0.1, -]", True)],
        [("b", False), ("-", True)],
    ]
    assert shown_table([]) == {"head": [], "body": []}
    assert shown_table([{"name": "a", "lo": 1}])["head"] == ["name", "lo"]
    contrast = {"control": "a", "effect": 0.9, "contrast": 0.1, "lo": 0.0, "hi": 0.2}
    assert shown_table([contrast])["head"] == ["control", "effect", "contrast [bounds]"]


def test_nested_entries_become_paths() -> None:
    assert flat_rows({"a": {"b": None, "c": [1]}, "d": 2}) == [
        ("a / b", "-"),
        ("a / c", "[1]"),
        ("d", "2"),
    ]


def test_the_report_command_rebuilds_the_page_from_what_the_run_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "claims.json").write_text(rows_text([verdict("C4")]))
    annotate(tmp_path, notebooks={"03_y": {"error": "ValueError: no <images>"}})
    assert command.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "03_y: not run" in page
    assert "ValueError: no &lt;images&gt;" in page
    assert "0.333 [-, -]" not in page  # without both bounds an estimate stands alone
    assert "0.333" in page
    assert "script-src &#39;none&#39;" in page
    assert command.main(["report", str(tmp_path / "none")]) == 2
