"""A run described as a research object: what is there is listed, by the library's own reading."""

import json

import pytest
from rocrate.rocrate import ROCrate

from visdepth_utils.runs.crate import CRATE, write_crate


def make_run(folder):
    for name in ("figures/a.png", "tables/t-1.parquet", "notebooks/00.ipynb", "other.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    facts = {
        "updated": "2026-01-02T03:04:05+00:00",
        "model": {"name": "m/a", "weights_hash": "abc"},
        "data": {"source": "embedded worlds", "hash": "def"},
        "code": {"git_commit": "0123"},
        "versions": {"visdepth-utils": "0.1.0"},
    }
    (folder / "provenance.json").write_text(json.dumps(facts))
    claims = [{"claim": "C1", "model": "m/a", "verdict": "weaker"}]
    (folder / "claims.json").write_text(json.dumps(claims))
    return folder


def test_files_and_origins_are_read_back_and_equal_runs_give_equal_files(tmp_path):
    folder = make_run(tmp_path / "run")
    text = write_crate(folder).read_text()
    assert write_crate(folder).read_text() == text
    crate = ROCrate(folder)
    listed = {entity.id for entity in crate.data_entities}
    assert listed == {
        *("claims.json", "provenance.json", "figures/a.png", "tables/t-1.parquet"),
        "notebooks/00.ipynb",
    }
    assert "C1: weaker" in crate.description and "m/a" in crate.name
    run = crate.dereference("#run")
    assert run["instrument"]["identifier"] == "0123"
    assert {entity["identifier"] for entity in run["object"]} == {"abc", "def"}
    assert {entity.id for entity in run["result"]} == listed
    assert str(tmp_path) not in text


def test_a_run_without_anything_is_described_and_a_damaged_one_refused(tmp_path):
    assert "No claim was judged." in write_crate(tmp_path).read_text()
    (tmp_path / "claims.json").write_text("{")
    (tmp_path / CRATE).unlink()
    with pytest.raises(ValueError, match="claims.json is not readable"):
        write_crate(tmp_path)
    assert not (tmp_path / CRATE).exists()
