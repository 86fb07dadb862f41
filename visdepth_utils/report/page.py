"""The end of a run: report.html, one page that opens anywhere."""

import base64
import hashlib
import json
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import jinja2

from visdepth_utils.claims.c0 import title_answer
from visdepth_utils.common.files import write_text
from visdepth_utils.report.figures import run_figures
from visdepth_utils.report.pages import notebook_page
from visdepth_utils.report.sections import claim_sections, flat_rows
from visdepth_utils.report.verdict_table import verdict_rows
from visdepth_utils.runs.records import read_claims, read_provenance

_HERE = Path(__file__).parent


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
        run=folder.name,
        style=(_HERE / "report.css").read_text(encoding="utf-8"),
        script=script,
        policy=_policy(script),
        answers=[title_answer(e) for e in read_claims(folder) if e["claim"] == "C0"],
        verdicts=verdict_rows(folder),
        sections=sections,
        anchors={section["claim"]: f"claim-{i}" for i, section in enumerate(sections, 1)},
        titles={section["claim"]: section["title"] for section in sections},
        outputs=outputs,
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


def read_outputs(folder: Path) -> list[dict[str, Any]]:
    """What the page embeds: outputs by depth, cut into words, with those that changed.

    The report has neither the model nor the data. So a notebook keeps the first samples of its
    table with their pictures, as ``explorer/<task>-<style>.json`` in the run.

    Returns:
        One entry per task and style: ``name, mode, divergence, measured, samples``; a sample has
        ``prompt, reference, pictures, rows``, a row ``depth, words, added`` (places of words that
        the full model does not say), ``lost`` (places of the full model's words that are missing),
        ``score, kl``. Rows are sorted by depth, the last one is the full model's. Empty without
        files.

    Raises:
        ValueError: If a file is not what ``keep_outputs`` writes.
    """
    found = []
    for file in sorted((folder / "explorer").glob("*.json")):
        try:
            (entry,) = json.loads(file.read_text(encoding="utf-8"))
            found.append(_for_page(entry))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{file} is not readable ({type(error).__name__}: {error}): delete it and run again"
            ) from error
    return found


def _for_page(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a file, its outputs compared with the full model's."""
    plain = entry["style"] in ("", "direct")
    samples = []
    for sample in entry["samples"]:
        full = str(sample["rows"][-1][1] or "").split()
        rows = []
        for depth, output, score, kl in sample["rows"]:
            words = str(output or "").split()
            added, lost = _differences(words, full)
            changed = {"words": words, "added": added, "lost": lost}
            rows.append({"depth": depth, **changed, "score": score, "kl": kl})
        kept = {name: sample[name] for name in ("sample", "prompt", "reference", "pictures")}
        samples.append({**kept, "rows": rows})
    name = entry["task"] if plain else f"{entry['task']}, {entry['style']} chains"
    kept = {name: entry[name] for name in ("mode", "divergence", "measured")}
    return {"name": name, **kept, "samples": samples}


def _differences(words: list[str], full: list[str]) -> tuple[list[int], list[int]]:
    """Places of words that only the one, and only the other text has."""
    added: list[int] = []
    lost: list[int] = []
    for kind, a, b, c, d in SequenceMatcher(None, full, words, autojunk=False).get_opcodes():
        if kind != "equal":
            lost += range(a, b)
            added += range(c, d)
    return added, lost
