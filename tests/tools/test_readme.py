"""The README's verdicts: written by a command, and those of the committed notebooks."""

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from PIL import Image

from tools.readme import (
    FIGURE,
    FULL,
    PICTURE,
    PRETRAINED,
    START,
    STOP,
    markdown_table,
    short_table,
    update_readme,
)
from visdepth_utils.claims.c0 import title_answer
from visdepth_utils.common.files import rows_text
from visdepth_utils.runs.registration import in_force

ROOT = Path(__file__).resolve().parents[2]
ENTRY = {
    "claim": "C4",
    "model": "minivlm/base",
    "verdict": "weaker",
    "effect": 0.1934,
    "effect_label": "retention",
    "ci": [0.1556, 0.2249],
    "n_images": 96,
    "control_effect": 0.0226,
    "control_label": "control, the largest of the tasks",
    "reason": "a | b",
    "plain": {"verdict": "supported"},
    "robustness": {"line": "holds in 50% of 4 analyses"},
}
ROW = (
    "| C4 What truncation costs depends on the task | supported "
    "| **weaker**: a \\| b (holds in 50% of 4 analyses) "
    "| 0.19 [0.16, 0.22] (retention) | 0.02 (the largest of the tasks) | 96 |"
)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def stored_verdicts() -> dict[str, dict[str, str]]:
    """Claim -> lines of the verdict as the committed notebooks show it."""
    found = {}
    for file in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        for cell in nbformat.read(file, as_version=4).cells:
            for output in cell.get("outputs", []):
                lines = str(output.get("data", {}).get("text/plain", "")).splitlines()
                if head := re.fullmatch(
                    r"(C\d+): ([A-Z ]+)( \(fragile\))?", lines[0] if lines else ""
                ):
                    facts = {line[:10].strip(): line[10:].strip() for line in lines[1:]}
                    found[head[1]] = {"verdict": head[2].lower() + (head[3] or ""), **facts}
    return found


def page_rows(page: Path) -> list[list[str]]:
    text = (ROOT / page).read_text()
    block = text.partition(START)[2].partition(STOP)[0].strip()
    return [cells(row) for row in block.splitlines() if row.startswith("|")]


def test_the_readme_holds_the_verdicts_of_the_committed_notebooks() -> None:
    stored = stored_verdicts()
    _, _, *rows = page_rows(Path("README.md"))
    assert [row[0].split()[0] for row in rows] == sorted(stored), "make readme"
    for claim, plain, verdict, effect, agree, *_ in rows:
        facts = stored[claim.split()[0]]
        assert plain == facts.get("plainly", "-").partition(":")[0]
        assert verdict == f"**{facts['verdict']}**"
        assert effect == facts["effect"].partition(" (")[0]
        assert agree == "-" or facts["analyses"].startswith(f"holds in {agree} analyses")
        assert (agree == "-") == ("analyses" not in facts)


def test_the_readme_is_read_in_five_minutes() -> None:
    prose = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(prose.split()) < 900


def test_the_full_page_holds_the_verdicts_of_the_committed_notebooks() -> None:
    stored = stored_verdicts()
    head, _, *rows = page_rows(FULL)
    assert len(stored) >= 5
    assert [row[0].split()[0] for row in rows] == sorted(stored), "make readme"
    for claim, plain, verdict, effect, control, images, *_ in rows:
        facts = stored[claim.split()[0]]
        assert plain == facts.pop("plainly", "-").partition(":")[0]
        agree = f" ({facts.pop('analyses')})" if "analyses" in facts else ""
        assert verdict.replace("\\|", "|") == f"**{facts['verdict']}**: {facts['reason']}{agree}"
        assert effect == facts["effect"]
        (name,) = set(facts) - {"verdict", "model", "claim", "effect", "images", "reason"}
        value, _, note = facts[name].partition(" (")
        name = "" if name == "control" else f" {name}"
        assert control == f"{value}{name} ({note}"
        assert images == facts["images"]
        assert head[2] == f"verdict on `{facts['model']}`"


def test_the_figure_is_there_and_small() -> None:
    text = (ROOT / "README.md").read_text()
    assert f"]({PICTURE.as_posix()})" in text
    assert (ROOT / PICTURE).stat().st_size < 80_000
    with Image.open(ROOT / PICTURE) as image:
        assert image.width >= 800


def test_a_short_table_by_hand() -> None:
    told = "| C4 What truncation costs depends on the task | supported | **weaker** "
    told += "| 0.19 [0.16, 0.22] | 50% of 4 |"
    assert short_table([ENTRY]).splitlines()[-1] == told
    other = {**ENTRY, "model": "m", "robustness": {"line": "", "fragile": True}}
    head, line, row = short_table([ENTRY], [other]).splitlines()
    assert head.endswith("| on `m` |")
    assert line == "|---" * 6 + "|"
    assert row == told + " weaker (fragile) |"
    bare = {**ENTRY, "effect": None, "plain": None, "robustness": None}
    assert cells(short_table([bare]).splitlines()[-1])[1:] == [
        *("-", "**weaker**", "not measured [0.16, 0.22]", "-")
    ]


def test_a_table_by_hand() -> None:
    assert markdown_table([ENTRY]).splitlines()[-1] == ROW
    fragile = {**ENTRY, "robustness": {"line": "holds in 50% of 4 analyses", "fragile": True}}
    assert markdown_table([fragile]).splitlines()[-1] == ROW.replace("weaker", "weaker (fragile)")
    bare = {**ENTRY, "effect": None, "ci": [None, None], "control_effect": None}
    row = cells(markdown_table([bare]).splitlines()[-1])
    assert row[3:5] == [
        "not measured (retention)",
        "not measured (the largest of the tasks)",
    ]


def make_pages(folder: Path, text: str) -> tuple[Path, Path]:
    """README and the page with all verdicts, with the same text."""
    pages = folder / "README.md", folder / FULL
    for page in pages:
        page.parent.mkdir(exist_ok=True)
        page.write_text(text)
    return pages


def block(table: str, *before: str) -> str:
    return "\n\n".join([START, *before, table, STOP])


def make_run(folder: Path, *entries: dict) -> Path:
    (folder / "figures").mkdir(parents=True)
    (folder / "claims.json").write_text(rows_text(entries))
    fig, axis = plt.subplots(figsize=(12, 4))
    axis.plot([0, 1])
    fig.savefig(folder / "figures" / f"{FIGURE}.png", dpi=150)
    plt.close(fig)
    return folder


def test_only_the_part_between_the_marks_is_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ENTRY)
    readme, page = make_pages(tmp_path, f"before\n\n{START}\nold\n{STOP}\n\nafter\n")
    assert update_readme(run, readme, tmp_path) == [readme, page, tmp_path / PICTURE]
    once = readme.read_text()
    assert once == f"before\n\n{block(short_table([ENTRY]))}\n\nafter\n"
    assert page.read_text() == f"before\n\n{block(markdown_table([ENTRY]))}\n\nafter\n"
    picture = (tmp_path / PICTURE).read_bytes()
    update_readme(run, readme, tmp_path)
    assert readme.read_text() == once
    assert (tmp_path / PICTURE).read_bytes() == picture
    with Image.open(tmp_path / PICTURE) as image:
        assert image.width == 1000


def test_other_models_stand_beside_if_judged_by_the_rules_in_force(tmp_path: Path) -> None:
    run, (readme, page) = make_run(tmp_path / "run", ENTRY), make_pages(tmp_path, START + STOP)
    kept = [
        {**ENTRY, "model": PRETRAINED, "verdict": "supported", "rules": in_force()},
        {**ENTRY, "model": "minivlm/old", "rules": {"claims": "a", "judging": "b"}},
        {**ENTRY, "rules": in_force()},
    ]
    for number, entry in enumerate(kept):
        folder = tmp_path / "runs" / str(number)
        folder.mkdir(parents=True)
        (folder / "claims.json").write_text(rows_text([entry]))
    update_readme(run, readme, tmp_path / "runs")
    assert cells(readme.read_text().splitlines()[-3])[4:] == ["50% of 4", "supported"]
    assert f"on `{PRETRAINED}` |" in readme.read_text()
    said, _, *table = page.read_text().splitlines()[2:7]
    assert said in readme.read_text()
    assert said.endswith(f"Different ({ENTRY['model']}, {PRETRAINED}): C4 (weaker, supported).")
    head, _, row = map(cells, table)
    assert head[-1] == "other models"
    low, high = ENTRY["ci"]
    number = f"{ENTRY['effect']:.2f} [{low:.2f}, {high:.2f}]"
    assert row[-1] == f"`{PRETRAINED}`: **supported**, {number}"


def test_the_titles_question_is_answered_above_the_table(tmp_path: Path) -> None:
    entry = {**ENTRY, "claim": "C0"}
    run, (readme, _) = make_run(tmp_path / "run", entry), make_pages(tmp_path, START + STOP)
    update_readme(run, readme, tmp_path)
    lines = readme.read_text().splitlines()
    assert lines[2].startswith("**Must image tokens be processed, or only read?** minivlm/base, 96")
    assert lines[2].endswith(title_answer(entry))
    assert lines[4].startswith("| claim |")


@pytest.mark.parametrize(
    ("entries", "text", "message"),
    [
        ([ENTRY], "no marks", "lacks the lines"),
        ([ENTRY], f"{STOP}{START}", "lacks the lines"),
        ([ENTRY, {**ENTRY, "model": "other"}], f"{START}{STOP}", "holds 2"),
        ([], f"{START}{STOP}", "holds 0"),
    ],
)
def test_what_cannot_be_written_leaves_the_file(
    tmp_path: Path, entries: list[dict], text: str, message: str
) -> None:
    run = make_run(tmp_path / "run", *entries)
    readme, page = make_pages(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        update_readme(run, readme, tmp_path)
    assert readme.read_text() == page.read_text() == text
    (run / "figures" / f"{FIGURE}.png").unlink()
    make_pages(tmp_path, START + STOP)
    with pytest.raises(FileNotFoundError, match=f"run notebook {FIGURE[:2]} first"):
        update_readme(run, readme, tmp_path)


def test_rows_are_one_line_each_and_json() -> None:
    entries = [{"claim": "C1", "ci": [0.1, None], "rows": [{"a": 1.5}, {"a": None}], "none": []}]
    text = rows_text(entries)
    assert json.loads(text) == entries
    assert '      {"a": 1.5},\n      {"a": null}\n' in text
    assert json.loads(rows_text([])) == []
    with pytest.raises(ValueError, match="not JSON compliant"):
        rows_text([{"a": float("nan")}])
