"""Files that were cut, flipped or made up: read as they were written, or refused; never wrong."""

import json
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.bad_input.box import VERDICT
from tools.readme import markdown_table
from visdepth_utils.report.compare import comparison_text
from visdepth_utils.report.page import write_report
from visdepth_utils.report.verdict_table import verdict_text
from visdepth_utils.runs import cache
from visdepth_utils.runs.records import all_verdicts, read_claims, read_provenance

QUICK = settings(
    max_examples=150,
    deadline=timedelta(seconds=5),
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
KEY = {"model": "m", "n": 3}
FRAME = pd.DataFrame(
    {
        "sample": ["a", "b", None],
        "value": [0.5, float("nan"), -1.0],
        "depth": [0, 1, 2],
        "token_ids": [[1, 2], [], [3]],
    }
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 0.5, 1e308, float("nan"), float("inf"), "supported", ""])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a finished step."""
    folder = tmp_path_factory.mktemp("tables")
    pd.testing.assert_frame_equal(cache.store(folder, "step", KEY, FRAME), FRAME)
    (file,) = folder.glob("*.parquet")
    return file


def _looked_up(stored: Path, content: bytes, folder: Path) -> pd.DataFrame | None:
    """Look the step up in a folder whose file has this content."""
    (folder / stored.name).write_bytes(content)
    found = cache.find(folder, "step", KEY)
    aside = folder / (stored.name + cache.DAMAGED)
    assert aside.exists() == (found is None)
    aside.unlink(missing_ok=True)
    return found


@settings(QUICK, max_examples=250)
@given(st.data())
def test_a_flipped_bit_is_never_a_wrong_table(stored: Path, tmp_path: Path, data: object) -> None:
    content = bytearray(stored.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = _looked_up(stored, bytes(content), tmp_path)
    if bytes(content) == stored.read_bytes():
        pd.testing.assert_frame_equal(found, FRAME)
    else:
        assert found is None


def test_every_byte_of_the_file_counts(stored: Path, tmp_path: Path) -> None:
    """Not only the pages, which parquet's own checksums guard: names, types and counts too."""
    whole = stored.read_bytes()
    for place in range(0, len(whole), 7):
        changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        assert _looked_up(stored, changed, tmp_path) is None, place


@settings(QUICK, max_examples=60)
@given(st.data())
def test_a_cut_or_foreign_file_is_set_aside(stored: Path, tmp_path: Path, data: object) -> None:
    whole = stored.read_bytes()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    made_up = data.draw(st.binary(max_size=200))
    for content in (
        cut,
        made_up,
        whole + made_up + b"x",
        b"PAR1" + made_up + b"PAR1",
        b"x" + whole,
    ):
        assert _looked_up(stored, content, tmp_path) is None
    pd.testing.assert_frame_equal(_looked_up(stored, whole, tmp_path), FRAME)


def test_another_step_or_setting_is_not_read(stored: Path, tmp_path: Path) -> None:
    other = cache.store(tmp_path, "step", {**KEY, "n": 4}, FRAME.head(1))
    (file,) = tmp_path.glob("*.parquet")
    content = file.read_bytes()
    file.unlink()
    assert len(other) == 1
    assert _looked_up(stored, content, tmp_path) is None


def _use(folder: Path) -> None:
    """All that shows a run."""
    verdict_text(folder)
    comparison_text(folder, folder)
    all_verdicts(folder.parent, folder.parent / "none")
    write_report(folder, ["00_a"])
    if len({entry["model"] for entry in read_claims(folder)}) == 1:
        markdown_table(read_claims(folder))


def _readable_or_refused(folder: Path) -> None:
    """Either every command takes the files, or they are refused in one line."""
    try:
        read_claims(folder), read_provenance(folder)
    except ValueError as error:
        assert "is not readable" in str(error) and "delete it and run again" in str(error)
        assert len(str(error).splitlines()) == 1
        return
    _use(folder)


@QUICK
@given(
    st.lists(st.dictionaries(st.sampled_from([*VERDICT, "p", "controls"]), JSON, max_size=3)),
    st.dictionaries(st.sampled_from(["notebooks", "model", "versions", "updated"]), JSON),
)
@example([{"ci": []}, {"n_images": 10**400}], {})
@example([{"details": [{"a": 1, "b": "x", "lo": "y", "hi": []}, {}]}], {"notebooks": {"a": {}}})
def test_claims_with_any_entries(tmp_path: Path, changes: list[dict], facts: dict) -> None:
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "claims.json").write_text(json.dumps([{**VERDICT, **one} for one in changes]))
    (folder / "provenance.json").write_text(json.dumps(facts))
    _readable_or_refused(folder)


@QUICK
@given(st.data())
def test_claims_that_were_cut_or_flipped(tmp_path: Path, data: object) -> None:
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True, exist_ok=True)
    whole = bytearray(json.dumps([VERDICT, {**VERDICT, "claim": "C2"}]).encode())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole)))]
    for _ in range(data.draw(st.integers(0, 3)) if whole else 0):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (folder / "claims.json").write_bytes(bytes(whole))
    _readable_or_refused(folder)
