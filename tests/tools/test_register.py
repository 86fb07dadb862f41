"""Registrations of the rules, and the page of their changes."""

import json
from datetime import date
from pathlib import Path

import pytest

from tools.register import DEVIATIONS, deviations, register
from visdepth_utils.claims.registry import load_claims
from visdepth_utils.runs import registration
from visdepth_utils.runs.registration import REGISTER, in_force, registered


def test_a_registration_holds_the_rules_the_day_and_what_was_seen(tmp_path: Path) -> None:
    file = tmp_path / "registration.json"
    entry = register(" before the new model ", file, date(2026, 1, 2))
    assert json.loads(file.read_text()) == [entry]
    assert (entry["number"], entry["date"], entry["note"]) == (
        1,
        "2026-01-02",
        "before the new model",
    )
    assert {name: entry[name] for name in ("claims", "judging")} == in_force()
    assert {"base", "small"} <= set(entry["seen"]["models"])
    assert entry["seen"]["runs"]


def test_only_changed_rules_are_registered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "registration.json"
    register("first", file)
    with pytest.raises(ValueError, match="registration 1 of .* has the same rules"):
        register("second", file)
    claims = tmp_path / "claims.yaml"
    claims.write_text("claims: {}")
    monkeypatch.setattr(registration, "CLAIMS_FILE", claims)
    assert register("third", file)["number"] == 2
    assert [entry["note"] for entry in json.loads(file.read_text())] == ["first", "third"]
    with pytest.raises(ValueError, match="NOTE="):
        register("  ", file)


def test_the_code_that_judges_counts_by_what_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "JUDGES", tmp_path)
    (tmp_path / "c1.py").write_text("LEAST = 1\n")
    before = in_force()["judging"]
    (tmp_path / "c1.py").write_text("# at least\nLEAST = 1\n")
    assert in_force()["judging"] == before
    (tmp_path / "c1.py").write_text("LEAST = 2\n")
    assert in_force()["judging"] != before


def test_a_verdict_names_its_registration_or_how_much_changed_since(tmp_path: Path) -> None:
    judging = in_force()["judging"]
    entries = [
        {"number": number, "date": "2026-01-02", "claims": claims, "judging": judging}
        for number, claims in enumerate(("aa", "bb"), 1)
    ]
    file = tmp_path / "registration.json"
    file.write_text(json.dumps(entries))
    assert registered({"claims": "aa", "judging": judging}, file) == "registration 1 of 2026-01-02"
    assert registered({"claims": "bb", "judging": judging}, file) == "registration 2 of 2026-01-02"
    changes = [c for entry in load_claims()["claims"].values() for c in entry["changes"]]
    for rules in ({"claims": "bb", "judging": "other"}, {"claims": "cc", "judging": judging}, {}):
        told = registered(rules, file)
        assert "not registered; the last registration is 2 of 2026-01-02" in told
        assert f"{len(changes)} changes of later days" in told


def test_every_change_is_on_the_page() -> None:
    text = deviations()
    changes = [c for entry in load_claims()["claims"].values() for c in entry["changes"]]
    assert text.count("\n| 20") == len(changes)
    days = [line.split(" | ")[0][2:] for line in text.splitlines() if line.startswith("| 20")]
    assert days == sorted(days, reverse=True)
    assert DEVIATIONS.read_text(encoding="utf-8") == text, "make register"


def test_the_stored_registrations_are_numbered_and_grow() -> None:
    entries = json.loads(REGISTER.read_text(encoding="utf-8"))
    assert [entry["number"] for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry["date"] for entry in entries] == sorted(entry["date"] for entry in entries)
