"""Source is parsed by one thread at a time, wherever the package parses it."""

import ast
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import visdepth_utils
from visdepth_utils.common.cells import assigned, parsed
from visdepth_utils.runs.measuring_code import hash_sources


def test_two_threads_never_parse_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside, most, real = threading.Semaphore(1), [], ast.parse

    def slow(*args, **kwargs):
        most.append(inside.acquire(blocking=False))
        time.sleep(0.002)
        if most[-1]:
            inside.release()
        return real(*args, **kwargs)

    monkeypatch.setattr(ast, "parse", slow)
    (tmp_path / "a.py").write_text("x = 1")
    works = [lambda: hash_sources(tmp_path), lambda: assigned("y = 2"), lambda: parsed("z = 3")]
    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(work) for work in works * 8]
        assert all(future.result() for future in done)
    assert len(most) == 24
    assert all(most)


def test_nothing_in_the_package_parses_past_it() -> None:
    home = Path(visdepth_utils.__file__).parent
    users = [file.name for file in home.rglob("*.py") if "ast.parse(" in file.read_text()]
    assert users == ["cells.py"]
