"""The README's commands on names of the hub, against stand-ins for the hub on this machine."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests import hubdata

ROOT = Path(__file__).resolve().parents[2]
NAME = "Qwen/Qwen2.5-VL-3B-Instruct"
DATA = "HuggingFaceM4/ChartQA"
COMMIT = "c0ffee" + "0" * 34
NOTEBOOK = "03_layers_are_interchangeable"


class Hub(BaseHTTPRequestHandler):
    """Gives the files of folders as the hub does: the commit, the list of files, each file."""

    repos: dict[str, Path]  # "Qwen/model" or "datasets/owner/name"

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/").replace("api/models/", "api/")
        name = next((name for name in self.repos if f"{name}/" in path), "")
        kind, _, rest = path.partition(f"{name}/")[2].partition("/")
        if not name:
            return self.give(404, b"", code="RepoNotFound")
        base, inside = self.repos[name], rest.partition("/")[2]
        paths = {path.relative_to(base).as_posix(): path for path in base.rglob("*")}
        files = {file: path for file, path in paths.items() if path.is_file()}
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            facts = {"id": name.removeprefix("datasets/"), "sha": COMMIT, "siblings": siblings}
            return self.give(200, json.dumps(facts).encode())
        if kind in ("tree", "paths-info"):
            length = int(self.headers.get("Content-Length", 0))
            asked = json.loads(self.rfile.read(length))["paths"] if length else None
            listed = [
                {"path": file, "size": path.stat().st_size, "oid": file}
                | {"type": "file" if path.is_file() else "directory"}
                for file, path in paths.items()
                if (file in asked if asked else path.parent == base / inside)
            ]
            return self.give(200, json.dumps(listed).encode())
        if inside not in files:
            return self.give(404, b"", code="EntryNotFound")
        return self.give(200, files[inside].read_bytes())

    do_HEAD = do_POST = do_GET

    def give(self, status: int, body: bytes, code: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(body):x}"')
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Callable[..., str]]:
    """Serve folders under names of the hub; gives the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:

        def serve(repos: dict[str, Path]) -> str:
            server.RequestHandlerClass = type("Hub", (Hub,), {"repos": repos})
            Thread(target=server.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{server.server_port}"

        yield serve
        server.shutdown()


def test_a_model_by_its_name_is_measured_in_a_dry_run(qwen_path: Path, tmp_path: Path) -> None:
    """The device is the CPU here; everything else is the README's line."""
    (line,) = (
        text
        for text in (ROOT / "README.md").read_text().splitlines()
        if NAME in text and "DRY=1" in text
    )
    assert "N=64 DEVICE=cuda DRY=1" in line
    repo = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    shutil.copytree(qwen_path, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    env |= {"VISDEPTH_RESULTS": str(tmp_path / "results")}
    options = ["--model", NAME, "--n", "64", "--device", "cpu", "--dry"]
    done = subprocess.run(
        [sys.executable, "-m", "visdepth_utils", "reproduce", *options],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.lower()
    assert all(word in told for word in ("min", "memory", "disk"))
    # With another name there is nothing to fetch.
    options[1] = "Qwen/of-another-name"
    failed = subprocess.run(
        [sys.executable, "-m", "visdepth_utils", "reproduce", *options],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 2
    assert "Qwen/of-another-name" in failed.stderr


def test_data_by_its_name_is_fetched_and_measured(
    qwen_path: Path, tmp_path: Path, hub: Callable[..., str]
) -> None:
    """One notebook, few samples and the CPU here; everything else is the README's line."""
    assert f"make reproduce SOURCE={DATA} MODEL={NAME} N=64" in (ROOT / "README.md").read_text()
    data = hubdata.chartqa(tmp_path / "charts")
    where = hub({NAME: qwen_path, f"datasets/{DATA}": data})
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / f"{NOTEBOOK}.ipynb", tmp_path / "notebooks")
    env = os.environ | {
        "HF_ENDPOINT": where,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
    }
    options = ["--source", DATA, "--model", NAME, "--n", "4", "--device", "cpu"]
    options += ["--out", str(tmp_path / "run"), "--notebooks", str(tmp_path / "notebooks")]
    done = subprocess.run(
        [sys.executable, "-m", "visdepth_utils", "reproduce", *options],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 broken, " in done.stdout
    facts = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert facts["data"] == {"source": DATA, "hash": COMMIT}
    (kept,) = [json.loads(f.read_text()) for f in (tmp_path / "run" / "selection").glob("*.json")]
    assert (kept["revision"], kept["split"], len(kept["samples"])) == (COMMIT, "test", 4)
    (entry,) = json.loads((tmp_path / "run" / "claims.json").read_text())
    assert (entry["claim"], entry["n_images"]) == ("C3", 4)
