"""The report's sections: which figures and tables belong to a claim, and how numbers are shown."""

import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from visdepth_utils import __main__ as command
from visdepth_utils.claims.registry import load_claims
from visdepth_utils.claims.verdict import Robustness, Verdict
from visdepth_utils.common.files import REPO, rows_text
from visdepth_utils.report.figures import notebook_figures, run_figures
from visdepth_utils.report.page import write_report
from visdepth_utils.report.sections import claim_sections, flat_rows, shown_table
from visdepth_utils.report.verdict_table import verdict_rows, verdict_text
from visdepth_utils.runs.records import annotate
from visdepth_utils.runs.run import Run

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


def test_small_tables_of_a_notebook_stand_in_its_section(tmp_path: Path) -> None:
    (tmp_path / "claims.json").write_text(rows_text([verdict("C8"), verdict("C4")]))
    saved = pd.DataFrame({"intervention": ["random"], "mcq": [1 / 3], "clock": [np.nan]})
    run = Run(tmp_path, {"model": "m"})
    assert run.summary(saved, "08_what_methods_save") is saved
    run.summary(saved.set_index("intervention"), "08_by_name")
    found = {section["claim"]: section["summaries"] for section in claim_sections(tmp_path, [])}
    assert found["C4"] == []
    by_name, one = found["C8"]
    assert one["name"] == "what methods save" and one["table"] == by_name["table"]
    assert one["table"]["head"] == ["intervention", "mcq"]
    assert [cell[0] for cell in one["table"]["body"][0]] == ["random", "0.333"]
    assert "Table: what methods save" in write_report(tmp_path, []).read_text()


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
    assert found["C4"]["quoted"]
    assert "quote" not in registered["C6"]  # no sentence of the authors is known
    assert found["C5"]["quoted"]
    assert found["C5"]["words"] == registered["C5"]["quote"]
    assert found["C5"]["verdicts"] == []
    assert (found["C99"]["title"], found["C99"]["figures"]) == ("", [])


def drawn(folder: Path, notebook: str, *cells: str) -> None:
    """A notebook of a run; cells with ``run.figure`` are code, and draw those figures."""
    made = []
    for text in cells:
        code = "run.figure" in text
        made.append((nbformat.v4.new_code_cell if code else nbformat.v4.new_markdown_cell)(text))
        for name in re.findall(r'"(.+?)"', text) if code else []:
            (folder / "figures").mkdir(exist_ok=True)
            (folder / "figures" / f"{name}.png").write_bytes(b"png")
    (folder / "notebooks").mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made), folder / "notebooks" / f"{notebook}.ipynb")


def test_figures_come_in_the_order_and_with_the_words_of_their_notebooks(tmp_path: Path) -> None:
    drawn(
        tmp_path,
        "04_cut",
        "# Claim 4\n\n## 3. What is *left*\n\n**How to read it.** See `d`,\nand [this](a.md).",
        'run.figure(fig, "04_retention")\nrun.figure(other, "04_all_modes")',
        "## Or longer?",
        'run.figure(fig, "04_length")',
    )
    drawn(tmp_path, "00_start", 'run.figure(fig, "00_accuracy")')
    (tmp_path / "figures" / "04_another.png").write_bytes(b"png")  # of an earlier version
    assert [tuple(one.values())[:3] for one in run_figures(tmp_path)] == [
        ("00_accuracy", "accuracy", ""),
        ("04_retention", "What is left", "See d, and this."),
        ("04_all_modes", "What is left: all modes", ""),
        ("04_length", "Or longer?", ""),
        ("04_another", "another", ""),
    ]


def test_figures_of_a_damaged_notebook_are_still_shown(tmp_path: Path) -> None:
    drawn(tmp_path, "04_cut", "## Curves", 'run.figure(fig, "04_curves")')
    (tmp_path / "notebooks" / "04_cut.ipynb").write_text('{"cells": [')
    (one,) = run_figures(tmp_path)
    assert (one["title"], one["how"], one["uri"][:15]) == ("curves", "", "data:image/png;")
    assert run_figures(tmp_path / "none") == []


def test_every_figure_of_our_notebooks_stands_under_a_heading() -> None:
    for notebook in sorted((REPO / "notebooks").glob("0[1-9]_*.ipynb")):
        assert notebook_figures(notebook)
        for name, (title, _) in notebook_figures(notebook).items():
            assert name[:2] == notebook.stem[:2]
            assert title[0].isupper(), (notebook.stem, name)


def test_a_row_says_control_once_and_no_number_of_images_where_there_are_none(
    tmp_path: Path,
) -> None:
    plain = {**verdict("C4"), "control_label": "control, the largest"}
    (tmp_path / "claims.json").write_text(rows_text([plain, verdict("C9", n_images=0)]))
    first, second = verdict_rows(tmp_path)
    assert (first["control_label"], first["images"]) == ("the largest", "48")
    assert second["images"] == "-"
    page = write_report(tmp_path, []).read_text()
    assert "on m, 48 images. R<" in page
    assert "on m. R<" in page


def test_a_fragile_verdict_says_so_in_its_headline_everywhere(tmp_path: Path) -> None:
    doubtful = Robustness("weaker", 4, 0.5, 1.0, {}, True)
    firm = Robustness("weaker", 4, 1.0, 1.0, {}, False)
    entries = [verdict("C4", robustness=doubtful), verdict("C5", robustness=firm), verdict("C9")]
    (tmp_path / "claims.json").write_text(rows_text(entries))
    rows = verdict_rows(tmp_path)
    assert [row["verdict"] for row in rows] == ["weaker"] * 3  # the word itself is as it was
    assert [row["label"] for row in rows] == ["weaker (fragile)", "weaker", "weaker"]
    lines = verdict_text(tmp_path).splitlines()[2:]
    assert ["weaker (fragile)" in line for line in lines] == [True, False, False]
    page = write_report(tmp_path, []).read_text()
    assert page.count(">weaker (fragile)</span>") == 2  # the card and the claim's own section
    assert page.count(">weaker</span>") == 4


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
