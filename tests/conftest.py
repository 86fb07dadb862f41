"""Shared fixtures: tiny random models and a small folder of worlds, made once per run."""

import io
import signal
from pathlib import Path

import pandas as pd
import pytest

from tests import tiny
from visdepth_utils.models.load import load_vlm
from visdepth_utils.models.vlm import VLM

# A shell that puts tests into the background has them, and what they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = (
    *("tests/e2e/test_real_run.py", "tests/faults/test_kill", "tests/e2e/test_", "tests/faults/"),
    *("tests/notebooks/test_papermill.py", "tests/families/", "tests/bad_input/"),
)
"""Files that take long. They begin, in this order: else one worker is left with one of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; the tests of a file keep theirs."""

    def place(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(LONG) if item.nodeid.startswith(name)), len(LONG))

    items.sort(key=place)


@pytest.fixture(scope="session")
def llava_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny LLaVA with 16 image tokens and 3 layers."""
    return tiny.llava(tmp_path_factory.mktemp("tiny") / "llava")


@pytest.fixture(scope="session")
def llava(llava_path: Path) -> VLM:
    """The tiny LLaVA, loaded."""
    return load_vlm(llava_path)


@pytest.fixture(scope="session")
def stopping(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """A tiny LLaVA whose answers two words end beside the end token, which is not the first id."""
    stops = [6, 3, 34, 9]
    return load_vlm(tiny.llava(tmp_path_factory.mktemp("tiny") / "stopping", stops=stops))


@pytest.fixture(scope="session")
def llava64(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """A tiny LLaVA with 64 image tokens, enough for matched-N geometry."""
    return load_vlm(tiny.llava(tmp_path_factory.mktemp("tiny") / "llava64", size=64, layers=4))


@pytest.fixture(scope="session")
def qwen_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen2.5-VL, in the layout of the hub."""
    return tiny.qwen(tmp_path_factory.mktemp("tiny") / "qwen")


@pytest.fixture(scope="session")
def qwen(qwen_path: Path) -> VLM:
    """The tiny Qwen2.5-VL, loaded with its own processor."""
    return load_vlm(qwen_path)


def png(seed: int) -> bytes:
    """A noise picture as PNG bytes."""
    buffer = io.BytesIO()
    tiny.picture(seed).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def worlds(tmp_path: Path) -> Path:
    """A folder of the embedded layout: 6 pictures, 2 vqa questions on each, 3 styles of reason."""
    images = [{"image_id": f"p{i}", "image": {"bytes": png(i), "path": None}} for i in range(6)]
    pd.DataFrame(images).to_parquet(tmp_path / "images.parquet")

    def row(name: str, i: int, k: int, style: str) -> dict:
        return {
            "id": f"{name}-{i}-{k}-{style}",
            "image_id": f"p{i}",
            "task": name,
            "kind": "colour",
            "style": style,
            "prompt": f"what is {k} ?",
            "reference": "red",
            "answer": "red",
            "choices": ["red", "blue"] if k else [],
        }

    vqa = [row("vqa", i, k, "direct") for i in range(6) for k in range(2)]
    reason = [row("reason", i, 0, style) for i in range(6) for style in ("direct", "short", "long")]
    pd.DataFrame(vqa).to_parquet(tmp_path / "vqa.parquet")
    pd.DataFrame(reason).to_parquet(tmp_path / "reason.parquet")
    return tmp_path
