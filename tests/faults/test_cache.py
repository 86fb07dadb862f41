"""The step cache on disks that are full, read-only or shared, with clocks that jump."""

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests import tiny
from visdepth_utils import __main__ as command
from visdepth_utils.common import files
from visdepth_utils.common.files import WriteError, atomic, locked, run_lock, write_text
from visdepth_utils.runs import cache, measuring_code
from visdepth_utils.runs.cache import content_hash
from visdepth_utils.runs.run import Run, open_run

ROOT = Path(__file__).resolve().parents[2]
KEY = {"k": 1}
FRAME = pd.DataFrame({"value": [float(i) for i in range(5000)]})


@pytest.fixture
def run(llava_path: Path, tmp_path: Path) -> Run:
    return open_run(model=str(llava_path), n_samples=4, out_dir=tmp_path / "run")


# --- disks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["while writing", "at fsync"])
def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    run: Run, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.table("first", lambda: FRAME)
    before = sorted(os.listdir(run.folder / "tables"))

    def full(*args: object, **_kwargs: object) -> None:
        if when == "while writing":
            Path(str(args[1])).write_bytes(b"half a table")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = (pq, "write_table") if when == "while writing" else (files.os, "fsync")
    monkeypatch.setattr(*target, full)
    with pytest.raises(WriteError) as caught:
        run.table("second", lambda: FRAME)
    text = str(caught.value)
    assert text.startswith(f"cannot write {run.folder / 'tables'}/second-")
    assert text.endswith(
        "(No space left on device): free some space, and run again: what was finished is kept"
    )
    assert sorted(os.listdir(run.folder / "tables")) == before
    monkeypatch.undo()
    pd.testing.assert_frame_equal(run.table("second", lambda: FRAME), FRAME)


def test_a_limit_that_the_system_enforces_is_one_line(tmp_path: Path) -> None:
    """A real refusal by the kernel in the middle of a write, not a simulated one."""
    code = (
        "import resource, sys, pandas as pd\n"
        "from pathlib import Path\n"
        "from visdepth_utils.runs import cache\n"
        "import random; frame = pd.DataFrame({'v': [random.random() for _ in range(200000)]})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
        "try:\n"
        f"    cache.step(Path({str(tmp_path / 'tables')!r}), 's', lambda: frame, {{}})\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "is larger than what is allowed here" in done.stdout, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert os.listdir(tmp_path / "tables") == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_is_one_line_and_exit_2(
    number: int,
    tmp_path: Path,
    llava_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(self: Path, *_args: object, **_kwargs: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.delenv("DEBUG", raising=False)
    status = command.main(["reproduce", "--model", str(llava_path), "--out", str(tmp_path / "x")])
    assert status == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: cannot write {tmp_path / 'x'}")
    assert "give a folder that can be written, e.g. OUT=results/mine" in printed.err
    assert len(printed.err.splitlines()) == 1


def test_an_out_folder_inside_a_file_is_one_line(
    tmp_path: Path, llava_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    assert command.main(["reproduce", "--model", str(llava_path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "a part of this path is a file" in error
    assert len(error.splitlines()) == 1


# --- several writers, clocks ----------------------------------------------------------------------


def _write(folder: Path, number: int) -> None:
    for turn in range(20):
        key = {"turn": turn}
        made = pd.DataFrame({"value": [turn] * 1000})
        cache.step(folder, "step", lambda made=made: made, key, say=lambda _: None)
        with locked(folder / "count"):
            file = folder / "count"
            write_text(file, str(int(file.read_text() if file.exists() else 0) + 1))


def test_several_writers_corrupt_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(folder, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert (folder / "count").read_text() == "80"
    assert len(list(folder.glob("*.parquet"))) == 20
    assert not [name for name in os.listdir(folder) if name.endswith((".tmp", cache.DAMAGED))]
    for turn in range(20):
        frame = cache.find(folder, "step", {"turn": turn})
        assert frame["value"].tolist() == [turn] * 1000


def test_a_clock_that_jumps_changes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.table("step", lambda: FRAME)
    (file,) = (run.folder / "tables").glob("*.parquet")
    for year in (-(10**9), 0, 4 * 10**9):
        os.utime(file, (year, year))
        monkeypatch.setattr(time, "time", lambda year=year: float(year))
        found = run.table("step", lambda: pytest.fail("measured again"))
        pd.testing.assert_frame_equal(found, FRAME)


def test_one_run_at_a_time_and_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    with run_lock(tmp_path):  # noqa: SIM117
        with pytest.raises(ValueError, match=rf"in use by another run \(process {os.getpid()}\)"):
            with run_lock(tmp_path):
                pass
    with run_lock(tmp_path):
        pass


# --- the key --------------------------------------------------------------------------------------


def test_the_hash_of_samples_follows_all_that_is_measured_or_scored() -> None:
    sample = tiny.sample(1)
    changed = [
        replace(sample, prompt="another"),
        replace(sample, answer="another"),
        replace(sample, kind="another"),
        replace(sample, choices=("a", "b")),
        replace(sample, images=(tiny.picture(99),)),
        replace(sample, images=()),
    ]
    hashes = {content_hash([one]) for one in (sample, replace(sample), *changed)}
    assert len(hashes) == 1 + len(changed)


# --- showing and pruning --------------------------------------------------------------------------


def test_pruning_deletes_what_no_run_reads_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run.table("current", lambda: FRAME)
    tables = run.folder / "tables"
    with monkeypatch.context() as patch:
        patch.setattr(measuring_code, "code_version", lambda: "old")
        run.table("old", lambda: FRAME)
    replace(run, settings={**run.settings, "model": "data/minivlm/small"}).table("x", lambda: FRAME)
    gone = tiny.llava(tmp_path / "gone")
    Run(run.folder, {**run.settings, "model": str(gone)}).table("gone", lambda: FRAME)
    (gone / "config.json").unlink()
    (tables / "foreign-000000000000.parquet").write_bytes(b"no table")
    (tables / f"x.parquet{cache.DAMAGED}").write_bytes(b"x")
    for name, age in ((".a.parquet.1.tmp", 2 * cache.STALE_S), (".b.parquet.2.tmp", 0)):
        (tables / name).touch()
        os.utime(tables / name, (time.time() - age,) * 2)
    (tables / "notes.txt").write_text("mine")
    cache._model_hashes.cache_clear()
    states = {file.name.partition("-")[0]: state for file, state, _ in cache.entries(run.folder)}
    assert states == {
        "current": "current",
        "x": "current",
        "old": "other code",
        "gone": "other model",
        "foreign": "unreadable",
        f"x.parquet{cache.DAMAGED}": "set aside",
        ".a.parquet.1.tmp": "left by a kill",
    }
    assert command.main(["cache", str(run.folder)]) == 0
    assert "outdated; --prune deletes them" in capsys.readouterr().out
    assert (tables / ".a.parquet.1.tmp").exists()
    with run_lock(run.folder):
        assert command.main(["cache", str(run.folder), "--prune"]) == 2
    assert "is in use by another run" in capsys.readouterr().err
    assert command.main(["cache", str(run.folder), "--prune"]) == 0
    left = {name.partition("-")[0] for name in os.listdir(tables)}
    assert left == {"current", "x", "notes.txt", ".b.parquet.2.tmp"}
    run.table("current", lambda: pytest.fail("measured again"))


def test_a_run_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["cache", "no-such-run"]) == 2
    assert "no run 'no-such-run' with tables" in capsys.readouterr().err


def test_atomic_files_pass_other_errors_on(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic(tmp_path / "x"):
        raise KeyError("mine")
    assert os.listdir(tmp_path) == []
