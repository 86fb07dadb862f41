"""The box at the top of a notebook: what is kept by the rules in force, and nothing else."""

from pathlib import Path

import pytest

from visdepth_utils.common.files import rows_text
from visdepth_utils.runs.found import NOTHING, agreement, what_was_found
from visdepth_utils.runs.registration import in_force
from visdepth_utils.runs.run import chosen

ENTRY = {
    "claim": "C4",
    "model": "minivlm/base",
    "verdict": "supported",
    "effect": 0.1934,
    "effect_label": "retention",
    "ci": [0.1556, 0.2249],
    "n_images": 96,
    "control_effect": 0.0226,
    "control_label": "untrained, the largest",
    "reason": "letters keep <more>",
    "plain": {"verdict": "not supported", "effect": 0.5, "lo": 0.25, "hi": 0.75},
    "robustness": {"line": "holds in 70% of 47 analyses: fragile", "fragile": True},
}
LINE = (
    "minivlm/base: supported (fragile). Letters keep <more> (96 images). "
    "As published: not supported (0.50 [0.25, 0.75]). "
    "Corrected: 0.19 [0.16, 0.22] (retention); control, untrained: 0.02 (the largest). "
    "The verdict holds in 70% of 47 analyses: fragile."
)


def kept(folder: Path, *entries: dict) -> Path:
    folder.mkdir(parents=True)
    (folder / "claims.json").write_text(rows_text(entries))
    return folder


def test_the_runs_own_verdict_comes_first_then_those_of_other_models(tmp_path: Path) -> None:
    mine = {**ENTRY, "rules": in_force()}
    run = kept(tmp_path / "run", mine)
    recorded = tmp_path / "kept"
    kept(recorded / "a", {**mine, "model": "minivlm/other"}, {**mine, "verdict": "weaker"})
    kept(recorded / "b", {**mine, "model": "minivlm/old", "rules": {"claims": "x"}})
    found = what_was_found("C4", run, recorded)
    head, own, other = str(found).splitlines()
    assert head == "What we found (C4, What truncation costs depends on the task)"
    assert own == LINE
    assert other == LINE.replace("minivlm/base", "minivlm/other")
    page = found._repr_html_()
    assert "Letters keep &lt;more&gt;" in page and "<more>" not in page
    assert "<details>" not in page


def test_without_a_verdict_it_says_so(tmp_path: Path) -> None:
    run = kept(tmp_path / "run", ENTRY)  # no rules: judged nobody knows how
    found = what_was_found("C4", run, tmp_path / "none", settings="<table></table>")
    assert str(found).splitlines()[1] == NOTHING
    assert NOTHING in found._repr_html_()
    assert "no need to read</summary><table>" in found._repr_html_()
    assert str(what_was_found("C77", None, tmp_path / "none")).startswith("What we found (C77, ")


def test_what_was_not_measured_is_said_in_words(tmp_path: Path) -> None:
    bare = {"claim": "C4", "model": "m", "verdict": "not testable", "rules": in_force()}
    found = what_was_found("C4", kept(tmp_path / "run", bare), tmp_path / "none")
    told = "m: not testable. No reason is kept. Corrected: not measured; control: not measured."
    assert str(found).splitlines()[1] == told


def test_the_parameters_of_a_notebook() -> None:
    names = {"model": "m", "source": None, "n_samples": 4, "seed": 1, "device": "cpu"}
    names |= {"dtype": "auto", "profile": "quick", "out_dir": None}
    assert chosen({**names, "other": 1}) == names
    del names["seed"]
    with pytest.raises(ValueError, match="no parameter 'seed': run the parameters cell first"):
        chosen(names)


def test_that_no_analysis_could_be_made_is_a_sentence_of_its_own() -> None:
    assert agreement(ENTRY) == "The verdict holds in 70% of 47 analyses: fragile."
    none = {"robustness": {"line": "no analysis could be made"}}
    assert agreement(none) == "No analysis could be made."
    assert agreement({}) == ""
