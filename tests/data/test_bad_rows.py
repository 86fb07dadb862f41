"""Bad data: each fault stops with the row named, or is skipped when asked; odd pictures."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.hubdata import BLINK, CHARTQA, SCIENCEQA, blink_row, cell, encoded, png, write
from visdepth_utils.data.images import BadRow, upright_rgb
from visdepth_utils.data.tasks import MissingTask, load_task


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge: the header of one, and no pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data


def chart(image: bytes | None, label: list | None = None) -> dict:
    return {
        "image": cell(image),
        "query": "how many ?",
        "label": ["3"] if label is None else label,
        "human_or_machine": 0,
    }


CHARTS = {
    "corrupt picture": (chart(png(0)[:200]), "its picture cannot be decoded"),
    "no picture file": (chart(b"GIF? no"), "its picture cannot be decoded"),
    "bomb": (
        chart(bomb(60_000, 60_000)),
        "its picture is too large .Image size .3600000000 pixels",
    ),
    "half a bomb": (chart(bomb(10_000, 10_000)), "its picture is too large"),  # Pillow only warns
    "no picture": (chart(None), "it has no picture"),
    "no label": (chart(png(0), []), r"its label is \[\]"),
    "empty label": (chart(png(0), [" "]), "its label is ' ' .str.: it must be text"),
}


@pytest.mark.parametrize("fault", CHARTS)
def test_a_bad_chart_is_named_or_skipped(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, message = CHARTS[fault]
    file = write([chart(png(1)), row, chart(png(2))], CHARTQA, tmp_path / "test.parquet")
    with pytest.raises(BadRow, match=f"test.parquet .test., row 1: {message}") as caught:
        load_task("chart", source=file)
    assert "\n" not in str(caught.value)
    capsys.readouterr()
    task = load_task("chart", source=file, on_bad_row="skip")
    assert [s.id for s in task.samples] == ["chartqa-00000", "chartqa-00002"]
    assert list(task.selection["skipped"]) == ["row 1"]
    (line,) = capsys.readouterr().out.splitlines()
    assert "1 bad rows skipped: row 1: " in line


def test_pillows_limit_stays_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS
    assert before == 1024 * 1024 * 1024 // 4 // 3
    with pytest.raises(BadRow, match="too large"):
        upright_rgb(bomb(60_000, 60_000))
    assert before == Image.MAX_IMAGE_PIXELS


def test_skipping_keeps_the_choice_nested(tmp_path: Path) -> None:
    rows = [chart(png(i) if i % 3 else png(i)[:150]) for i in range(12)]
    file = write(rows, CHARTQA, tmp_path / "test.parquet")

    def ids(n: int) -> list[str]:
        return [s.id for s in load_task("chart", n=n, source=file, on_bad_row="skip").samples]

    assert ids(8)[:5] == ids(5) and len(set(ids(8))) == 8
    assert all(int(name[-5:]) % 3 for name in ids(8))
    with pytest.raises(ValueError, match="n=9 samples of 'chart' asked for, .* has 8 good rows"):
        ids(9)
    with pytest.raises(ValueError, match="unknown on_bad_row 'ignore': choose stop or skip"):
        load_task("chart", source=file, on_bad_row="ignore")


LINES = {
    "outside": ({"image": "../secret.png"}, "its picture '../secret.png' lies outside of"),
    "address": ({"image": "https://a.b/c.png"}, "its picture is the address 'https://a.b/c.png'"),
    "data URI": ({"image": "data:image/png;base64,AAA"}, "its picture 'data:.*' is no base64"),
    "damaged base64": ({"image": "iVBORw0KGgo" + "A" * 89}, "its picture cannot be decoded"),
    "long path": ({"image": "a/" * 500}, "its picture 'a/a/.{50,80} is no file in"),
    "absolute": ({"image": "/etc/hostname"}, "its picture '/etc/hostname' lies outside of"),
    "link": ({"image": "link.png"}, "its picture 'link.png' lies outside of"),
    "missing file": ({"image": "none.png"}, "its picture 'none.png' is no file in"),
    "odd path": ({"image": "a\0.png"}, "its picture .* is no path"),
    "type of picture": ({"image": 5}, "its picture is 5: give"),
    "no answer": ({"answer": None}, "its answer is None .NoneType.: it must be text"),
    "yes or no": ({"answer": True}, "its answer is True .bool.: it must be text"),
    "an object": ({"answer": {"a": 1}}, "its answer is .*dict.: it must be text"),
    "NaN": ({"answer": float("nan")}, "its answer is nan .float."),
    "question": ({"question": 7}, "its question is 7 .int.: it must be text"),
    "choices": ({"choices": ["x", "y"], "answer": "z"}, "its answer 'z' names none of its 2"),
    "letter": ({"choices": ["x", "y"], "answer": "C"}, "its answer 'C' names none of its 2"),
    "place": ({"choices": ["x", "y"], "answer": 2}, "its answer is 2: it must be the place of one"),
    "twice": ({"choices": ["x", "x"], "answer": "x"}, "its answer 'x' is there twice"),
    "two meanings": (
        {"choices": [2, 1, 0], "answer": 0},
        "its answer 0 is a choice and also the place",
    ),
    "one choice": ({"choices": ["x"], "answer": "x"}, "its choices are .'x'.: give a list of 2"),
    "choices as text": ({"choices": "x or y"}, "its choices are 'x or y': give a list"),
}
RAW = {
    "not UTF-8": (b'{"image": "a.png", "question": "caf\xe9 ?", "answer": "x"}', "it is not UTF-8"),
    "no JSON": (b'{"image": "a.png", ', "it is no JSON"),
    "no object": (b"[1, 2]", "it is no JSON object"),
    "an array": (b'[{"image": "a.png"}]', "it is no JSON object but an array: write one object"),
    "a piece": (b'{"image": "a.png"},', "it is no JSON by itself but a piece of an array"),
    "empty line": (b"", "it is empty"),
    "lacks a key": (b'{"image": "a.png", "question": "?"}', "it lacks 'answer': add it"),
}


@pytest.mark.parametrize("fault", [*LINES, *RAW])
def test_a_bad_line_is_named_or_skipped(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(0))
    (tmp_path / "secret.png").write_bytes(png(1))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    good = {"image": "a.png", "question": "what ?", "answer": "x"}
    if fault in LINES:
        change, message = LINES[fault]
        bad = json.dumps({**good, **change}).encode()
    else:
        bad, message = RAW[fault]
    line = json.dumps(good).encode()
    file = folder / "rows.jsonl"
    file.write_bytes(b"\n".join([line, bad, line, b""]))
    name = "mcq" if "choices" in bad.decode("latin1") else "vqa"
    with pytest.raises(BadRow, match=f"rows.jsonl, line 2: ({message})") as caught:
        load_task(name, source=file)
    assert "\n" not in str(caught.value)
    if name == "vqa":
        task = load_task(name, source=file, on_bad_row="skip")
        assert [s.id for s in task.samples] == ["table-00001", "table-00003"]
        assert list(task.selection["skipped"]) == ["line 2"]


GOOD = {"image": "a.png", "question": "ä ?", "answer": "x"}


def folder_of(tmp_path: Path, content: bytes, name: str = "rows.jsonl") -> Path:
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            json.dumps([GOOD, GOOD], ensure_ascii=False).encode(),
            "it is no JSON object but an array",
        ),
        (json.dumps([GOOD, GOOD], indent=1).encode(), "it is no JSON by itself but a piece of"),
        (
            json.dumps(GOOD, indent=1).encode() * 2,
            "it is no JSON by itself but a piece of an array",
        ),
        (json.dumps(GOOD, ensure_ascii=False).encode("latin-1"), "it is not UTF-8 .byte"),
        (json.dumps(GOOD).encode("utf-16"), "it is not UTF-8 .byte 0"),
        (json.dumps(GOOD).encode("utf-16-le"), "it is not UTF-8 .zero bytes, as UTF-16 has"),
    ],
)
def test_a_file_that_is_no_json_lines_says_what_it_is(
    content: bytes, message: str, tmp_path: Path
) -> None:
    file = folder_of(tmp_path, content)
    with pytest.raises(
        ValueError, match="rows.jsonl has no line that can be read; the first: " + message
    ):
        load_task("vqa", source=file)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_any_system_ends_them(end: str, tmp_path: Path) -> None:
    file = folder_of(tmp_path, (json.dumps(GOOD) + end).encode() * 3 + end.encode())
    assert len(load_task("vqa", source=file)) == 3


def test_a_picture_may_be_written_out(tmp_path: Path) -> None:
    packed = base64.b64encode(png(3)).decode()
    shown = [packed, f"data:image/png;base64,{packed}", {"bytes": packed, "path": None}]
    lines = "\n".join(json.dumps({**GOOD, "image": image}) for image in shown)
    task = load_task("vqa", source=folder_of(tmp_path, lines.encode()))
    expected = upright_rgb(png(3)).tobytes()
    assert [sample.images[0].tobytes() for sample in task.samples] == [expected] * 3


def test_an_unreadable_line_makes_no_task(tmp_path: Path) -> None:
    """It is a bad row of the tasks that other rows are of, and of no other."""
    lines = [json.dumps(GOOD)] * 3 + ['{"image": ']
    file = folder_of(tmp_path, "\n".join(lines).encode())
    for name in ("mcq", "chart", "caption"):
        with pytest.raises(MissingTask, match=f"no task '{name}'"):
            load_task(name, 2, source=file)
    with pytest.raises(BadRow, match="line 4: it is no JSON"):
        load_task("vqa", source=file)
    assert len(load_task("vqa", 3, source=file, on_bad_row="skip")) == 3


def test_what_systems_hide_in_a_folder_is_no_data(tmp_path: Path) -> None:
    folder_of(tmp_path, json.dumps(GOOD).encode())
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ("._rows.jsonl", "__MACOSX/._rows.jsonl", ".cache/rows.jsonl", "._a.parquet"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert [s.id for s in load_task("vqa", source=tmp_path).samples] == ["table-00001"]


def test_columns_that_no_format_reads_may_hold_anything(tmp_path: Path) -> None:
    row = {"image": png(0), "question": "?", "answer": "x"}
    table = pa.table({name: [value] for name, value in row.items()})
    odd = pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))
    file = tmp_path / "rows.parquet"
    pq.write_table(table.append_column("meta", odd), file)
    assert [s.answer for s in load_task("vqa", source=file).samples] == ["x"]
    pq.write_table(table.drop("answer").append_column("answer", odd), file)
    with pytest.raises(ValueError, match="rows.parquet: its column answer is of the type map<str"):
        load_task("vqa", source=file)
    pq.write_table(table.append_column("answer", pa.array(["y"])), file)
    with pytest.raises(ValueError, match="rows.parquet has the column 'answer' more than once"):
        load_task("vqa", source=file)


def test_what_is_skipped_is_said_alike_in_every_run(tmp_path: Path) -> None:
    file = write([chart(png(1)), chart(b"GIF? no")], CHARTQA, tmp_path / "test.parquet")
    runs = [load_task("chart", source=file, on_bad_row="skip").selection for _ in range(2)]
    assert runs[0] == runs[1]
    assert "0x" not in str(runs[0]["skipped"]) and "cannot identify" in str(runs[0]["skipped"])


def test_answers_must_fit_their_format(tmp_path: Path) -> None:
    entry = {
        "image": cell(png(0)),
        "question": "?",
        "choices": ["a", "b"],
        "hint": "",
        "subject": "",
    }
    for answer in (2, -1, None):
        file = write([{**entry, "answer": answer}], SCIENCEQA, tmp_path / f"{answer}.parquet")
        with pytest.raises(BadRow, match=f"row 0: its answer is {answer}: it must be the place"):
            load_task("scienceqa", source=file)
    file = write([blink_row("Counting", 0, 1, "(C)")], BLINK, tmp_path / "blink.parquet")
    with pytest.raises(BadRow, match=r"row 0: its answer '\(C\)' names none of its 2 choices"):
        load_task("blink", source=file)


def test_missing_columns_and_rows_are_named(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": [png(0)], "question": ["?"]})
    file = tmp_path / "t.parquet"
    frame.to_parquet(file)
    with pytest.raises(ValueError, match="has the columns image, question: .* it lacks answer"):
        load_task("vqa", source=file)
    with pytest.raises(ValueError, match="as chartqa it lacks answer, type"):
        load_task("chartqa", source=file)
    with pytest.raises(ValueError, match="as flickr8k it lacks caption_0, caption_1"):
        load_task("flickr8k", source=file)
    frame.assign(answer="x").iloc[:0].to_parquet(file)
    with pytest.raises(ValueError, match="t.parquet has no rows"):
        load_task("vqa", source=file)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="empty.jsonl has no rows"):
        load_task("vqa", source=tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="holds parquet and JSONL files"):
        load_task("vqa", source=tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="no .parquet or .jsonl file in"):
        load_task("vqa", source=tmp_path / "none")
    file.write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="t.parquet is not readable as parquet"):
        load_task("vqa", source=file)
    with pytest.raises(FileNotFoundError, match="no data at .*nothing"):
        load_task("vqa", source=tmp_path / "nothing")


# --- odd pictures ---------------------------------------------------------------------------------

RED = np.zeros((2, 3, 3), np.uint8)
RED[..., 0] = 255


def pixels(data: bytes) -> np.ndarray:
    image = upright_rgb(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_grey_palette_and_cmyk() -> None:
    grey = np.array([[0, 128, 255]], np.uint8)
    assert (pixels(encoded(Image.fromarray(grey))) == grey[..., None]).all()
    palette = Image.fromarray(RED).convert("P", palette=Image.Palette.ADAPTIVE)
    assert (pixels(encoded(palette)) == RED).all()
    cmyk = Image.fromarray(RED).resize((16, 16)).convert("CMYK")
    found = pixels(encoded(cmyk, "jpeg", quality=100)).astype(int)
    assert (abs(found - [255, 0, 0]) < 10).all()


def test_transparent_parts_are_white() -> None:
    clear = np.zeros((1, 2, 4), np.uint8)
    clear[0, 1] = (255, 0, 0, 255)
    assert pixels(encoded(Image.fromarray(clear))).tolist() == [[[255] * 3, [255, 0, 0]]]
    half = np.array([[[0, 128]]], np.uint8)  # grey with transparency
    assert pixels(encoded(Image.fromarray(half, "LA"))).tolist() == [[[127] * 3]]


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    deep = np.array([[0, 255, 256, 32896, 65535]], np.uint16)
    assert pixels(encoded(Image.fromarray(deep)))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    wide = Image.fromarray(np.array([[70_000]], np.int32))
    with pytest.raises(BadRow, match="32-bit values"):
        upright_rgb(encoded(wide, "tiff"))
    with pytest.raises(BadRow, match="floating-point"):
        upright_rgb(encoded(Image.fromarray(np.array([[0.5]], np.float32)), "tiff"))


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_upright(turn: int) -> None:
    """The eight EXIF orientations of one picture, each made by undoing what its entry asks for."""
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "png", exif=exif)
    assert (pixels(data)[..., 0] == upright).all()


def test_the_first_frame_of_an_animation() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:])
    assert (pixels(buffer.getvalue()) == [255, 0, 0]).all()
