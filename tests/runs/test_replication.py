"""Verdicts of many models side by side: what is read, what agrees, what is drawn, what is kept."""

import json

import pytest

from tests import tiny
from visdepth_utils import load_vlm
from visdepth_utils.__main__ import main
from visdepth_utils.claims.registry import claim_entry
from visdepth_utils.models.untrained import save_untrained
from visdepth_utils.plots.verdicts import effects_by_model
from visdepth_utils.runs.records import (
    RECORDED,
    all_verdicts,
    changed_verdicts,
    record,
    side_by_side,
)
from visdepth_utils.runs.registration import in_force


def run(folder, model, verdicts, updated="2026-01-01", effect=0.5):
    """A results folder with the given verdicts."""
    folder.mkdir(parents=True)
    entries = [
        {"claim": claim, "model": model, "verdict": said, "effect": effect, "ci": [0.4, 0.6]}
        | {"control_effect": 0.1, "n_images": 48}
        for claim, said in verdicts.items()
    ]
    (folder / "claims.json").write_text(json.dumps(entries))
    (folder / "provenance.json").write_text(json.dumps({"updated": updated}))
    return folder


def test_a_run_is_compared_with_those_on_its_data_first_with_those_of_its_settings(tmp_path):
    usual = {"source": None, "n_samples": None, "seed": 0, "profile": "quick", "dtype": "auto"}
    for name, model, changed, updated in (
        ("a", "m/a", {}, "2026-01-01"),
        ("a-n32-seed1", "m/a", {"n_samples": 32, "seed": 1}, "2026-02-01"),
        ("a-mine", "m/a", {"source": "mine"}, "2026-03-01"),
        ("b-n8", "m/b", {"n_samples": 8}, "2026-02-01"),
        ("b-n64", "m/b", {"n_samples": 64}, "2026-03-01"),
    ):
        folder = run(tmp_path / name, model, {"C1": "supported"})
        facts = {"updated": updated, "settings": {**usual, **changed}}
        (folder / "provenance.json").write_text(json.dumps(facts))
    for like, runs in (
        (usual, ["a", "b-n64"]),
        ({**usual, "source": "mine"}, ["a-mine"]),
        ({**usual, "n_samples": 32, "seed": 1}, ["a-n32-seed1", "b-n64"]),
        ({**usual, "n_samples": 8}, ["a", "b-n8"]),
        (None, ["a-mine", "b-n64"]),
    ):
        found = all_verdicts(tmp_path, tmp_path / "nothing", like=like)
        assert found["run"].tolist() == runs
    assert not all_verdicts(tmp_path / "none", RECORDED, like=usual).empty


def test_runs_are_read_and_the_latest_counts(tmp_path):
    run(tmp_path / "results" / "a", "m/a", {"C1": "supported", "C3": "weaker"})
    run(tmp_path / "results" / "a-2", "m/a", {"C1": "not supported"}, "2026-02-01")
    run(tmp_path / "kept" / "a", "m/a", {"C1": "inconclusive"}, "2027-01-01")  # of the same name
    run(tmp_path / "kept" / "b", "m/b", {"C1": "supported"}, effect=None)
    found = all_verdicts(tmp_path / "results", tmp_path / "kept")
    assert found[["claim", "model", "verdict"]].values.tolist() == [
        ["C1", "m/a", "not supported"],
        ["C1", "m/b", "supported"],
        ["C3", "m/a", "weaker"],
    ]
    assert found["effect"].isna().tolist() == [False, True, False]
    wide = side_by_side(found)
    assert wide.loc["C3", "m/b"] == "-" and wide.loc["C1", "m/a"] == "not supported"
    empty = all_verdicts(tmp_path / "nothing", tmp_path / "nothing")
    assert empty.empty and list(empty.columns) == list(found.columns)
    figure = effects_by_model(found, columns=2)
    assert [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes] == [
        "C1 Image tokens stabilise early",
        "C3 Image states are interchangeable between layers",
    ]
    words = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert words == [["supported", "not supported"], ["weaker"]]  # from the lowest row up
    with pytest.raises(ValueError, match="has no rows"):
        effects_by_model(empty)


def test_a_run_is_kept(tmp_path):
    source = run(tmp_path / "x", "m/a", {"C1": "supported"})
    kept = record(source, tmp_path / "kept")
    assert (kept / "claims.json").read_text() == (source / "claims.json").read_text()
    (source / "provenance.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no provenance.json"):
        record(source, tmp_path / "other")


def test_a_verdict_that_changed_is_kept_beside_the_new_one(tmp_path):
    kept = tmp_path / "kept"
    day = "2026-11-26"
    for number, (verdict_c4, verdict_c5) in enumerate(
        [("weaker", "supported"), ("supported", "supported"), ("inconclusive", "supported")]
    ):
        source = run(tmp_path / f"{number}" / "x", "m/a", {"C4": verdict_c4, "C5": verdict_c5})
        facts = json.loads((source / "provenance.json").read_text())
        facts["updated"] = f"2026-11-2{6 + number}T10:00:00+00:00"
        (source / "provenance.json").write_text(json.dumps(facts))
        record(source, kept)
    found = changed_verdicts(kept)
    assert found["claim"].tolist() == ["C4", "C4"]
    assert found["day"].tolist() == [day, "2026-11-27"]
    assert found["before"].tolist() == ["weaker", "supported"]
    assert found["now"].tolist() == ["inconclusive"] * 2
    changes = [c["what"] for c in claim_entry("C4")["changes"] if str(c["date"]) >= day]
    assert found["changed"].iloc[0] == "; ".join(changes)
    record(source, kept)  # the same once more
    assert len(changed_verdicts(kept)) == 2
    assert changed_verdicts(tmp_path / "none").empty


def test_recorded_runs_were_judged_by_the_thresholds_of_today():
    runs = sorted(RECORDED.glob("*/claims.json"))
    assert runs
    for file in runs:
        for entry in json.loads(file.read_text()):
            spec = claim_entry(entry["claim"])
            for name, margin in spec.get("margins", {}).items():
                if f"margin_{name}" in entry["thresholds"]:
                    assert entry["thresholds"][f"margin_{name}"] == margin["value"], (file, entry)


def test_an_untrained_twin_has_the_shape_and_not_the_weights(llava_path, tmp_path, capsys):
    target = tmp_path / "tiny-random-init"
    assert main(["random-init", str(llava_path), str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    twin, own = load_vlm(target), load_vlm(llava_path)
    mine, theirs = own.model.state_dict(), twin.model.state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    name = "lm_head.weight"
    assert not (mine[name] == theirs[name]).any()
    sample = tiny.sample(0)
    assert twin.encode([sample]).inputs["input_ids"].equal(own.encode([sample]).inputs["input_ids"])
    with pytest.raises(ValueError, match="is there already"):
        save_untrained(llava_path, target)
    with pytest.raises(ValueError, match="is no folder"):
        save_untrained("owner/name", tmp_path / "x")


def test_only_verdicts_by_the_rules_in_force_are_compared_where_asked(tmp_path):
    for name, rules in (("old", None), ("other", {"claims": "x", "judging": "y"}), ("now", 1)):
        folder = run(tmp_path / name, f"m/{name}", {"C1": "supported"})
        entries = json.loads((folder / "claims.json").read_text())
        entries[0]["rules"] = in_force() if rules == 1 else rules
        (folder / "claims.json").write_text(json.dumps(entries))
    assert len(all_verdicts(tmp_path, tmp_path / "none")) == 3
    assert all_verdicts(tmp_path, tmp_path / "none", current=True)["model"].tolist() == ["m/now"]
