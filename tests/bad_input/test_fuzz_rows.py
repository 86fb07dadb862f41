"""Rows of any content make a sample or are named; none crashes a reader."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.hubdata import png
from visdepth_utils.data.formats import FORMATS, LETTERS, Said
from visdepth_utils.data.images import BadRow, picture_bytes, picture_cells, upright_rgb
from visdepth_utils.data.records import read_lines
from visdepth_utils.data.tasks import load_task
from visdepth_utils.runs.provenance import data_identity

QUICK = settings(
    max_examples=200,
    deadline=timedelta(seconds=5),
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-30, 30)
    | st.sampled_from([10**400, float("nan"), float("inf"), 0.5, "A", "(B)", " ", "a" * 300])
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
COLUMNS = ("image", "question", "answer", "choices", "task", "kind")
GOOD = {"image": "a.png", "question": "what ?", "answer": "x"}


@st.composite
def rows(draw: st.DrawFn, columns: tuple[str, ...]) -> dict:
    """A row with most of the columns, each holding anything."""
    return {name: draw(VALUES) for name in columns if draw(st.integers(0, 9))}


@settings(QUICK, max_examples=60)
@given(st.data())
def test_a_row_of_any_format_is_read_or_bad(data: object) -> None:
    for form in FORMATS.values():
        columns = tuple(dict.fromkeys(name for names in form.columns for name in names))
        row = data.draw(rows((*columns, "choices", "task", "kind", "subject")))
        try:
            said = form.read(row)
        except BadRow as error:
            assert str(error).startswith("it") and len(str(error).splitlines()) == 1
            continue
        assert isinstance(said, Said) and isinstance(said.answer, str) and said.answer
        assert not said.choices or said.answer in LETTERS[: len(said.choices)]
        assert all(isinstance(word, str) for word in said.words.values())


@QUICK
@given(VALUES | st.binary(max_size=40))
@example({"bytes": 5, "path": ["x"]})
@example({"bytes": b"", "path": "a" * 300})
def test_a_cell_is_a_picture_or_bad(tmp_path: Path, cell: object) -> None:
    for part in picture_cells({"image": cell}, ["image"]):
        with pytest.raises(BadRow) as caught:
            upright_rgb(picture_bytes(part, tmp_path))
        assert len(str(caught.value).splitlines()) == 1


@QUICK
@given(st.data())
def test_a_damaged_picture_is_decoded_or_bad(data: object) -> None:
    content = bytearray(png(0, 8, 6))
    content = content[: data.draw(st.integers(1, len(content)))]
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert upright_rgb(bytes(content)).mode == "RGB"
    except BadRow as error:
        assert len(str(error).splitlines()) == 1


@QUICK
@given(st.lists(st.binary(max_size=30) | VALUES.map(lambda v: json.dumps(v).encode()), max_size=5))
@example([b"[" * 100_000, b'{"a": "\\ud800"}', b'{"a": "\\ud83d\\ude00"}', b"\xef\xbb\xbf{}"])
def test_lines_are_objects_or_bad(tmp_path: Path, lines: list[bytes]) -> None:
    file = tmp_path / "rows.jsonl"
    content = b"\n".join(lines)
    file.write_bytes(content)
    found = read_lines(file)
    assert all(isinstance(row, dict | BadRow) for row in found)
    assert len(found) <= content.count(b"\n") + content.count(b"\r") + 1
    for row in found:
        if isinstance(row, dict):
            json.dumps(row, ensure_ascii=False).encode()


@settings(QUICK, max_examples=100)
@given(st.lists(rows(COLUMNS), max_size=3), st.sampled_from(["stop", "skip"]))
@example([{**GOOD, "answer": -5, "choices": [-5, 1]}], "stop")
@example([{**GOOD, "answer": 10**400}, {**GOOD, "image": {"a": 1}}], "stop")
@example([{**GOOD, "image": "a" * 300}, {**GOOD, "question": "\ud800"}], "skip")
def test_a_file_of_any_rows_is_loaded_or_refused(
    tmp_path: Path, made: list[dict], on_bad_row: str
) -> None:
    (tmp_path / "a.png").write_bytes(png(0, 8, 6))
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [GOOD, *made]))
    assert len(data_identity(str(file))["hash"]) == 64
    for name in ("vqa", "mcq", "caption"):
        try:
            task = load_task(name, source=file, on_bad_row=on_bad_row)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1
            assert "rows.jsonl" in str(error) or "asked for" in str(error)
            continue
        assert task.samples and len(task.content_hash) == 64
        assert all(sample.images[0].mode == "RGB" for sample in task.samples)
