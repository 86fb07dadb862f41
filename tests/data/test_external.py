"""Data sets of others: every known format in the hub's own schema, choice, roles, and laziness."""

import gc
import json
import pickle
import weakref
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import datasets
import pandas as pd
import pytest
from datasets import DatasetDict, load_dataset

from tests import hubdata
from visdepth_utils.data import images as pictures
from visdepth_utils.data import open_dataset
from visdepth_utils.data.formats import FORMATS
from visdepth_utils.data.tasks import (
    EMBEDDED,
    MissingTask,
    available_tasks,
    load_task,
    missing_tasks,
    with_other_image,
    without_image,
)
from visdepth_utils.measure.scores import score
from visdepth_utils.runs import provenance


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """The library's cache away from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def table(file: Path, entries: list[dict]) -> Path:
    """A JSONL file with a picture beside it."""
    (file.parent / "a.png").write_bytes(hubdata.png(0))
    (file.parent / "b.png").write_bytes(hubdata.png(1))
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


# --- the formats ----------------------------------------------------------------------------------


def test_chartqa_as_the_hub_has_it(tmp_path: Path) -> None:
    task = load_task("chartqa", source=hubdata.chartqa(tmp_path, 8))
    assert [s.id for s in task.samples[:2]] == ["chartqa-00000", "chartqa-00001"]
    first = task.samples[3]
    assert first.prompt == "how many of 3 ?\nAnswer the question with a single word."
    assert (first.answer, first.reference, first.kind) == ("30", "30", "human")
    assert task.samples[7].kind == "augmented"
    assert first.image_id == task.samples[2].image_id != task.samples[4].image_id
    assert first.images[0].size == (40, 30)
    assert first.images[0].tobytes() == pictures.upright_rgb(hubdata.png(1)).tobytes()
    assert (task.max_new_tokens, task.selection["split"]) == (16, "test")
    assert len(load_task("chartqa", source=tmp_path, split="train")) == 2
    kinds = {s.kind for s in load_task("chartqa", source=tmp_path, subset="augmented").samples}
    assert kinds == {"augmented"}
    with pytest.raises(ValueError, match="no subset 'odd': it has augmented, human"):
        load_task("chartqa", source=tmp_path, subset="odd")
    with pytest.raises(ValueError, match="no split 'val': it has test, train"):
        load_task("chartqa", source=tmp_path, split="val")


def test_chartqa_in_its_other_schema(tmp_path: Path) -> None:
    samples = load_task("chartqa", source=hubdata.chartqa_lmms(tmp_path)).samples
    assert [s.kind for s in samples] == ["augmented", "human"] * 2
    assert [s.answer for s in samples] == ["0%", "1%", "2%", "3%"]
    assert score(samples[2], "2\n") == 1


def test_blink_with_one_and_with_several_pictures(tmp_path: Path) -> None:
    samples = load_task("blink", source=hubdata.blink(tmp_path)).samples
    assert Counter((s.kind, len(s.images)) for s in samples) == {
        ("Counting", 1): 3,
        ("Jigsaw", 3): 3,
    }
    assert {(s.answer, s.choices) for s in samples} == {("B", ("red", "blue"))}
    assert samples[0].prompt.endswith("(A) red\n(B) blue")
    assert len({s.image_id for s in samples}) == 6
    one = load_task("blink", source=tmp_path, subset="Jigsaw")
    assert {s.kind for s in one.samples} == {"Jigsaw"} and len(one) == 3
    with pytest.raises(ValueError, match="row 0: its answer 'hidden' names none of its 2 choices"):
        load_task("blink", source=tmp_path, split="test")


def test_a_sub_task_in_one_file_is_found_by_its_column(tmp_path: Path) -> None:
    entries = [hubdata.blink_row(name, 0, 1) for name in ("Counting", "Jigsaw")]
    file = hubdata.write(entries, hubdata.BLINK, tmp_path / "val.parquet")
    assert [s.kind for s in load_task("blink", source=file, subset="Jigsaw").samples] == ["Jigsaw"]


def test_flickr8k_counts_the_best_of_five_captions(tmp_path: Path) -> None:
    task = load_task("flickr8k", source=hubdata.flickr8k(tmp_path))
    first = task.samples[0]
    assert first.reference == first.references[0] == "a dog runs 0" and len(first.references) == 5
    assert task.max_new_tokens == 64
    assert score(first, "one dog outside 0") == 1
    # ROUGE-L F1 by hand: 2 of 2 words in "a brown dog 0" (2 of 4): 2 * 1 * .5 / 1.5
    assert score(first, "brown dog") == pytest.approx(2 / 3)
    assert score(first, "") == 0


def test_scienceqa_by_place_with_and_without_picture(tmp_path: Path) -> None:
    samples = load_task("scienceqa", source=hubdata.scienceqa(tmp_path)).samples  # ScienceQA-IMG
    assert [(s.answer, len(s.choices), len(s.images)) for s in samples] == [
        ("B", 3, 1),
        ("A", 3, 1),
        ("C", 3, 1),
    ]
    assert samples[0].prompt.startswith("Context: look .\nwhat is 1 ?\nA. one\nB. two\nC. three\n")
    every = load_task("scienceqa", source=tmp_path, subset="ScienceQA-FULL").samples
    assert [len(s.images) for s in every] == [0, 1, 0, 1, 0, 1]
    assert len({s.image_id for s in every}) == 6
    # A claim about image tokens asks for pictures.
    role = load_task("mcq", source=tmp_path / "ScienceQA-FULL")
    assert [s.id for s in role.samples] == [f"scienceqa-0000{i}" for i in (1, 3, 5)]


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    entries = [
        {"image": "a.png", "question": "how many ?", "answer": 3},
        {"image": ["a.png", "b.png"], "question": "which ?", "answer": "c", "choices": ["b", "c"]},
        {"image": "b.png", "question": "which ?", "answer": 1, "choices": ["x", "y"]},
        {"image": "b.png", "question": "which ?", "answer": "(A)", "choices": ["x", "y"]},
        {"image": "b.png", "question": "which ?", "answer": ["red", "dark red"]},
        {"image": "b.png", "question": "say it", "answer": ["a red", "b"], "task": "caption"},
    ]
    file = table(tmp_path / "mine.jsonl", entries)
    vqa, mcq, caption = (load_task(name, source=file) for name in ("vqa", "mcq", "caption"))
    assert [(s.id, s.answer) for s in vqa.samples] == [("table-00001", "3"), ("table-00005", "red")]
    assert score(vqa.samples[1], "Dark red.") == 1
    assert [s.answer for s in mcq.samples] == ["B", "B", "A"]
    assert [len(s.images) for s in mcq.samples] == [2, 1, 1]
    assert [s.references for s in caption.samples] == [("a red", "b")]
    assert set(available_tasks(source=file)) == {"vqa", "mcq", "caption"}
    with pytest.raises(MissingTask, match="no task 'chart' .it holds question rows, none of this"):
        load_task("chart", source=file)


def test_parquet_by_pandas_with_bytes_or_paths(tmp_path: Path) -> None:
    table(tmp_path / "unused.txt", [])
    frame = pd.DataFrame({"question": ["what ?"], "answer": ["red"]})
    images = {"bytes": hubdata.png(0), "struct": {"bytes": hubdata.png(0)}, "path": "a.png"}
    found = set()
    for name, image in images.items():
        frame.assign(image=[image]).to_parquet(tmp_path / f"{name}.parquet")
        (sample,) = load_task("vqa", source=tmp_path / f"{name}.parquet").samples
        found.add(sample.images[0].tobytes())
    assert found == {pictures.upright_rgb(hubdata.png(0)).tobytes()}


def test_what_datasets_saved_itself(tmp_path: Path) -> None:
    rows_of = load_dataset(str(hubdata.chartqa(tmp_path / "hub")), split="test")
    rows_of.save_to_disk(str(tmp_path / "one"))
    DatasetDict(test=rows_of, train=rows_of.select(range(2))).save_to_disk(str(tmp_path / "many"))
    expected = load_task("chart", source=tmp_path / "hub").content_hash
    assert load_task("chart", source=tmp_path / "one").content_hash == expected
    assert load_task("chart", source=tmp_path / "many").content_hash == expected
    assert len(load_task("chart", source=tmp_path / "many", split="train")) == 2


# --- the hub --------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], None]:
    """Lay a folder where the library looks for a repository; only the network line is replaced."""
    names: dict[str, str] = {}

    def local(function: Callable) -> Callable:
        def call(repo: str, *args: object, revision: str | None = None, **options: object):
            if repo == "parquet":  # a local file
                return function(repo, *args, **options)
            assert revision == "c0ffee"
            return function(names[repo], *args, **options)

        return call

    for name in ("get_dataset_config_names", "get_dataset_split_names", "load_dataset"):
        monkeypatch.setattr(f"datasets.{name}", local(getattr(__import__("datasets"), name)))
    monkeypatch.setattr(open_dataset, "hub_revision", lambda repo, revision: "c0ffee")
    return lambda folder, repo: names.update({repo: str(folder)})


@pytest.mark.parametrize("name", ["blink", "chartqa", "flickr8k"])
def test_a_hub_id_gives_what_its_files_give(name: str, tmp_path: Path, hub: Callable) -> None:
    folder = getattr(hubdata, name)(tmp_path / name)
    hub(folder, FORMATS[name].hub)
    task = load_task(name, n=3)
    assert task.content_hash == load_task(name, n=3, source=folder).content_hash
    assert task.selection["revision"] == "c0ffee"
    assert task.selection["split"] == {"blink": "val"}.get(name, "test")
    assert task.source == FORMATS[name].hub
    by_role = load_task(
        {"blink": "mcq", "chartqa": "chart"}.get(name, "caption"), n=3, source=task.source
    )
    assert [s.id for s in by_role.samples] == [s.id for s in task.samples]


def test_one_configuration_of_a_hub_id(tmp_path: Path, hub: Callable) -> None:
    hub(hubdata.blink(tmp_path), "BLINK-Benchmark/BLINK")
    assert {s.kind for s in load_task("blink", subset="Jigsaw").samples} == {"Jigsaw"}


def test_an_unreachable_hub_id_is_one_line() -> None:
    for source in ("owner/no-such-data", "owner/no-such-data@v1"):
        with pytest.raises(FileNotFoundError, match="data 'owner/no-such-data': no such") as caught:
            load_task("vqa", source=source)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="data 'BLINK-Benchmark/BLINK'"):
        load_task("blink")


def test_the_commit_of_a_fetched_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own cache layout, without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = COMMIT
    repo = tmp_path / "datasets--owner--name"
    for file, text in ((f"snapshots/{commit}/README.md", "card"), ("refs/main", commit)):
        (repo / file).parent.mkdir(parents=True)
        (repo / file).write_text(text)
    assert open_dataset.hub_revision("owner/name") == commit
    assert provenance.data_identity("owner/name") == {"source": "owner/name", "hash": commit}
    assert provenance.data_identity(f"owner/name@{commit}")["hash"] == commit
    assert provenance.data_identity("owner/other") == {"source": "owner/other", "hash": None}


class Hub(BaseHTTPRequestHandler):
    """Says the commit of owner/bare, a repository without any file but its data."""

    def do_GET(self) -> None:
        known = self.path.split("?")[0] == "/api/datasets/owner/bare/revision/main"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"id": "owner/bare", "sha": COMMIT}).encode() if known else b"")

    def log_message(self, *args: object) -> None:
        pass


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_repository_without_a_card_has_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", where)
        assert provenance.data_identity("owner/bare")["hash"] is None
        assert open_dataset.hub_revision("owner/bare") == COMMIT
        with pytest.raises(FileNotFoundError, match="data 'owner/gone': no such .*404"):
            open_dataset.hub_revision("owner/gone")
        server.shutdown()
    assert open_dataset.hub_revision("owner/bare") == COMMIT  # from now on without network
    assert provenance.data_identity("owner/bare")["hash"] == COMMIT
    with pytest.raises(FileNotFoundError, match="data 'owner/gone': no such"):
        open_dataset.hub_revision("owner/gone")


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (
            RuntimeError("Dataset scripts are no longer supported, but found name.py"),
            "made by a script.* owner/name@refs/convert/parquet",
        ),
        (
            datasets.exceptions.DatasetNotFoundError(
                "Dataset 'a/b' is a gated dataset on the Hub."
            ),
            "is gated .*accept its terms at .*/datasets/owner/name, then log in",
        ),
        (RuntimeError("delegated descriptions"), "check the name and the network"),
    ],
)
def test_a_refusal_says_what_helps(
    error: Exception, helps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(open_dataset, "hub_revision", lambda repo, revision: "c0ffee")
    monkeypatch.setattr("datasets.get_dataset_config_names", refuse)
    with pytest.raises(FileNotFoundError, match=f"data 'owner/name.*{helps}") as caught:
        load_task("vqa", source="owner/name@v1")
    assert "\n" not in str(caught.value)


# --- roles, choice, record ------------------------------------------------------------------------


def test_a_role_is_filled_by_the_data_sets_made_for_it(tmp_path: Path) -> None:
    roles = {
        name: set(available_tasks(source=getattr(hubdata, name)(tmp_path / name)))
        for name in ("chartqa", "chartqa_lmms", "blink", "flickr8k", "scienceqa")
    }
    assert roles == {
        "chartqa": {"chart", "vqa"},
        "chartqa_lmms": {"chart", "vqa"},
        "blink": {"mcq"},
        "flickr8k": {"caption"},
        "scienceqa": {"mcq"},
    }
    with pytest.raises(MissingTask) as caught:
        load_task("caption", source=tmp_path / "chartqa")
    assert str(caught.value) == (
        f"the data in {tmp_path / 'chartqa'} has no task 'caption' (it holds ChartQA rows): "
        "give a source that has it"
    )
    with pytest.raises(MissingTask, match="no task 'reason'"):
        load_task("reason", source=tmp_path / "chartqa", style="direct")


def test_the_choice_is_recorded_and_nested(tmp_path: Path) -> None:
    folder = hubdata.chartqa(tmp_path, 12)
    longer, shorter = (load_task("chart", n=n, seed=3, source=folder) for n in (9, 6))
    ids = [s.id for s in longer.samples]
    assert longer.selection["samples"] == ids and longer.selection["seed"] == 3
    assert [s.id for s in shorter.samples] == ids[:6] != sorted(ids[:6])
    assert len({s.image_id for s in shorter.samples}) == 6  # each chart once before one twice
    assert ids != [s.id for s in load_task("chart", n=9, seed=4, source=folder).samples]
    json.dumps(longer.selection)
    with pytest.raises(ValueError, match="n=13 samples of 'chart' asked for, .* has 12: change n"):
        load_task("chart", n=13, source=folder)


def test_the_prompt_is_a_setting(tmp_path: Path) -> None:
    folder = hubdata.chartqa(tmp_path)
    task = load_task("chart", n=1, source=folder, prompt="Q: {question} A:")
    assert task.samples[0].prompt.startswith("Q: how many of ")
    assert task.selection["prompt"] == "Q: {question} A:"
    with pytest.raises(ValueError, match=r"prompt '\{hint\}' cannot be filled .* \{question\}"):
        load_task("chart", n=1, source=folder, prompt="{hint}")


def test_content_hash_and_identity_follow_the_content(tmp_path: Path) -> None:
    folder = hubdata.chartqa(tmp_path / "hub")
    before = load_task("chart", source=folder).content_hash, provenance.data_identity(str(folder))
    assert load_task("chart", source=folder).content_hash == before[0]
    entries = [
        {"image": cell, "query": "?", "label": ["1"], "human_or_machine": 0}
        for cell in [hubdata.cell(hubdata.png(9))] * 8
    ]
    hubdata.write(entries, hubdata.CHARTQA, folder / "data" / "test-00000-of-00001.parquet")
    assert load_task("chart", source=folder).content_hash != before[0]
    assert provenance.data_identity(str(folder)) != before[1]
    file = table(tmp_path / "t.jsonl", [{"image": "a.png", "question": "?", "answer": "x"}])
    first = provenance.data_identity(str(file))["hash"]
    (tmp_path / "unrelated.txt").write_text("x")
    assert provenance.data_identity(str(file))["hash"] == first
    (tmp_path / "a.png").write_bytes(hubdata.png(7))  # the table names it
    assert provenance.data_identity(str(file))["hash"] != first


def test_pictures_are_decoded_when_asked_for_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref] = []
    most = 0
    decode = pictures.upright_rgb

    def alive() -> int:
        return sum(image() is not None for image in made)

    def counted(data: bytes):
        nonlocal most
        image = decode(data)
        made.append(weakref.ref(image))
        most = max(most, alive())
        return image

    monkeypatch.setattr(pictures, "upright_rgb", counted)
    task = load_task("chart", source=hubdata.chartqa(tmp_path, 40))
    assert task.content_hash
    gc.collect()
    assert len(made) >= 80 and most <= 2 and alive() == 0
    block = [list(s.images) for s in task.samples[:4]]
    assert alive() == 4 == len(block)


def test_samples_travel_to_other_processes(tmp_path: Path) -> None:
    task = load_task("chart", n=2, source=hubdata.chartqa(tmp_path))
    text = pickle.dumps(task.samples)
    assert len(text) < 20_000 + 2 * len(hubdata.png(0)) * 8  # rows by reference or few, never all
    again = pickle.loads(text)
    assert [s.images[0].tobytes() for s in again] == [s.images[0].tobytes() for s in task.samples]


def test_image_controls_on_lazy_pictures(tmp_path: Path) -> None:
    samples = load_task("blink", source=hubdata.blink(tmp_path)).samples
    other = with_other_image(samples)
    assert all(a.images is not b.images for a, b in zip(samples, other, strict=True))
    assert all(s.images == () for s in without_image(samples))


def test_a_model_answers_questions_about_several_pictures(tmp_path: Path, qwen) -> None:
    samples = load_task("blink", source=hubdata.blink(tmp_path)).samples
    enc = qwen.encode([samples[0], samples[-1]])
    assert 0 < int(enc.is_image[0].sum()) < int(enc.is_image[1].sum())
    assert len(qwen.generate(samples[-2:], 3)) == 2


@pytest.mark.parametrize("kind", ["chartqa", "flickr8k", "rows", "parquet", "worlds"])
def test_what_data_lack_is_known_without_a_picture(
    kind: str, tmp_path_factory: pytest.TempPathFactory, worlds: Path, monkeypatch
) -> None:
    """As loading each task says it; the pictures may be anything."""
    folder = tmp_path_factory.mktemp("data")
    row = {"image": "a.png", "question": "what ?", "answer": "red"}
    rows = [row, {**row, "task": "caption"}, {**row, "task": "chart"}]
    if kind in ("rows", "parquet"):
        source = table(folder / "rows.jsonl", rows)
        if kind == "parquet":
            source = folder / "rows.parquet"
            pd.DataFrame(rows).to_parquet(source)
    else:
        source = worlds if kind == "worlds" else getattr(hubdata, kind)(folder)
    said = {}
    for name in EMBEDDED:
        try:
            load_task(name, source=source)
        except MissingTask as error:
            said[name] = str(error)
    monkeypatch.setattr("visdepth_utils.data.images.upright_rgb", None)
    monkeypatch.setattr("visdepth_utils.data.external.picture_cells", None)
    assert missing_tasks(EMBEDDED, source) == said
    assert {"reason", "mcq"} & set(said)
