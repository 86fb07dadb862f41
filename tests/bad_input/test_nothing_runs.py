"""Nothing in a checkpoint or beside data is executed, and offline nothing is connected."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input.box import Box
from tests.hubdata import CHARTQA, cell, png, write
from visdepth_utils.common.files import REPO

SCRIPT = "import os\nos.mkdir({!r})\n"
AUTO = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
# Every way in which Python starts something is an event; the first bad one is printed and raised.
WATCH = """
import os, sys
trap, box = sys.argv[1:]
def watch(event, arguments):
    bad = event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")
    bad |= event == "os.mkdir" and str(arguments[0]) == trap
    bad |= event == "exec" and getattr(arguments[0], "co_filename", "").startswith(box)
    bad |= event == "pickle.find_class" and arguments[0] in ("os", "posix", "builtins")
    if bad:
        print("caught", event, arguments, flush=True)
        raise SystemExit(9)
"""
USE = """
from visdepth_utils import load_task, load_vlm
from visdepth_utils.runs.provenance import data_identity, model_identity
from visdepth_utils.measure.recovery import adapted
sys.addaudithook(watch)
vlm = load_vlm(box + "/spoilt")
load_vlm(box + "/spoilt", random_init=True)
task = load_task("chart", source=box + "/data")
data_identity(box + "/data"), model_identity(box + "/spoilt")
print(vlm.generate(task.samples, 2)[0] is not None, len(task))
def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except (ValueError, FileNotFoundError) as error:
        print("refused", str(error).splitlines()[0][:60].replace(box, ""))
    else:
        print("accepted", arguments)
refused(load_vlm, box + "/own-code")
refused(load_vlm, box + "/pickled")
refused(load_vlm, box + "/renamed")
refused(lambda: adapted(vlm, box + "/adapter").__enter__())
refused(load_task, "vqa", source=box + "/script-only")
refused(load_vlm, "nobody/no-model")
refused(load_task, "chartqa")
refused(load_task, "vqa", source="nobody/no-data")
"""


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def box(tmp_path: Path, llava_path: Path) -> Box:
    """Traps wherever a checkpoint or a data set may hold something that runs."""
    made, trap = Box(tmp_path / "box", llava_path), tmp_path / "trapped"
    evil, script = pickle.dumps(Trap(trap), protocol=2), SCRIPT.format(str(trap))
    names = ("pytorch_model.bin", "optimizer.pt", "scheduler.pt", "training_args.bin", "rng.pth")
    pickles: dict[str, str | bytes | None] = dict.fromkeys(names, evil)
    scripts = dict.fromkeys(("evil.py", "modeling_llava.py", "custom_generate/generate.py"), script)
    made.spoilt({**made.config(auto_map=AUTO), **pickles, **scripts})
    made.spoilt({**made.config(model_type="my_vlm", auto_map=AUTO), **scripts}, "own-code")
    made.spoilt({"model.safetensors": None, **pickles}, "pickled")
    made.spoilt({"model.safetensors": evil}, "renamed")
    made.file("adapter/adapter_config.json", json.dumps({"peft_type": "LORA", "r": 1}))
    made.file("adapter/adapter_model.bin", evil)
    row = {"image": cell(png(0)), "query": "?", "label": ["3"], "human_or_machine": 0}
    write([row, row], CHARTQA, made.folder / "data" / "test.parquet")
    for name in ("data", "script-only"):
        made.file(f"{name}/{name}.py", script)
        made.file(f"{name}/setup.py", script)
        made.file(f"{name}/cache.pkl", evil)
        made.file(f"{name}/dataset_infos.json", '{"default": {"builder_name": "evil"}}')
    return made


def _watched(code: str, box: Box) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(box.folder / "hf")}
    trap = str(box.folder.parent / "trapped")
    return subprocess.run(
        [sys.executable, "-c", WATCH + code, trap, str(box.folder)],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_nothing_is_executed_and_nothing_connected(box: Box) -> None:
    done = _watched(USE, box)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "True 2"
    assert [line.split()[0] for line in lines[1:]] == ["refused"] * 8, done.stdout
    assert "caught" not in done.stdout
    assert not (box.folder.parent / "trapped").exists()


@pytest.mark.parametrize(
    ("code", "event"),
    [
        ("import pickle; pickle.load(open(box + '/spoilt/optimizer.pt', 'rb'))", "find_class"),
        ("import runpy; runpy.run_path(box + '/spoilt/evil.py')", "exec"),
        ("os.mkdir(trap)", "os.mkdir"),
        ("import socket; socket.create_connection(('127.0.0.1', 9), 1)", "socket.getaddrinfo"),
        ("import socket; socket.socket().connect(('127.0.0.1', 9))", "socket.connect"),
    ],
)
def test_the_traps_would_be_noticed(box: Box, code: str, event: str) -> None:
    done = _watched(f"sys.addaudithook(watch)\n{code}", box)
    assert done.returncode == 9
    assert event in done.stdout
    assert not (box.folder.parent / "trapped").exists()


def test_a_state_of_training_runs_nothing(box: Box, tmp_path: Path) -> None:
    """A pickle where the distillation looks for the state it was stopped in."""
    from tests.bad_input.calls import _trained

    evil = (box.folder / "spoilt" / "optimizer.pt").read_bytes()
    with pytest.raises(ValueError, match="state.pt is no state of this training .*delete it"):
        _trained(box, "state.pt", evil)
    assert not (tmp_path / "trapped").exists()
    pickle.loads(evil)
    assert (tmp_path / "trapped").is_dir()  # so it would have been noticed
