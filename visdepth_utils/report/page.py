"""The end of a run: report.html, one page that opens anywhere."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jinja2

from visdepth_utils.claims.c0 import title_answer
from visdepth_utils.common.files import write_text
from visdepth_utils.report.cards import cards, in_short
from visdepth_utils.report.explorer import MODES, gallery, read_outputs
from visdepth_utils.report.figures import run_figures
from visdepth_utils.report.pages import notebook_page
from visdepth_utils.report.sections import claim_sections, flat_rows
from visdepth_utils.runs.records import read_claims, read_provenance

_HERE = Path(__file__).parent
_NAMED = (("model", "name"), ("data", "source"))


def write_report(folder: Path, notebooks: Sequence[str]) -> Path:
    """Write report.html from what a run has: tables, figures and verdicts, no model, no data.

    It holds its pictures and needs no network; executed notebooks lie beside it. ``notebooks``:
    names without ending, in order; those not run are named as such.
    """
    figures = run_figures(folder)
    sections = claim_sections(folder, figures)
    shown = {figure["name"] for section in sections for figure in section["figures"]}
    facts = read_provenance(folder)
    outputs = read_outputs(folder)
    script = (_HERE / "explorer.js").read_text(encoding="utf-8") if outputs else ""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = (_HERE / "report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        about=_about(folder, facts),
        style=(_HERE / "report.css").read_text(encoding="utf-8"),
        script=script,
        policy=_policy(script),
        answers=[_answer(e) for e in read_claims(folder) if e["claim"] == "C0"],
        verdicts=cards(folder),
        sections=sections,
        anchors={section["claim"]: f"claim-{i}" for i, section in enumerate(sections, 1)},
        titles={section["claim"]: section["title"] for section in sections},
        outputs=outputs,
        gallery=gallery(outputs),
        modes=MODES,
        figures=[figure for figure in figures if figure["name"] not in shown],
        notebooks=notebooks,
        links={name: link for name in notebooks if (link := notebook_page(folder, name))},
        broken={
            name: error for name in notebooks if (error := _ran(facts).get(name, {}).get("error"))
        },
        provenance=flat_rows(facts),
    )
    target = folder / "report.html"
    write_text(target, page)
    return target


def notebooks_of(folder: Path) -> list[str]:
    """Names of the notebooks that a run has executed or tried to, in order."""
    files = {file.stem for file in (folder / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    return sorted(files | set(_ran(read_provenance(folder))))


def _about(folder: Path, facts: dict) -> str:
    """Model and data of a run in a few words; without provenance its name."""
    model, data = ((facts.get(part) or {}).get(key) for part, key in _NAMED)
    named = [str(model).removeprefix("data/")] if model else [folder.name]
    return ", ".join(named + ([str(data)] if data else []))


def _answer(entry: dict) -> tuple[str, str]:
    """The answer to the title's question in a few words, and as a paragraph with its numbers."""
    return in_short(str(entry.get("reason") or entry["verdict"])), title_answer(entry)


def _ran(facts: dict) -> dict[str, dict]:
    """What provenance says of each notebook."""
    return facts.get("notebooks") or {}


def _policy(script: str) -> str:
    """What a browser may do with the page: show it, and run no script but this one.

    The text of a model is escaped; should that fail once, this still keeps it from running.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    allowed = f"'sha256-{digest}'" if script else "'none'"
    rules = ("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'")
    return "; ".join((*rules, f"script-src {allowed}", "base-uri 'none'", "form-action 'none'"))
