"""The planted faults of ``make mutants`` fit the tree: files, old texts and tests are there."""

import ast

import pytest
import yaml

from tests import mutants

FAULTS = yaml.safe_load(mutants.FAULTS.read_text(encoding="utf-8"))


def test_names_are_different() -> None:
    assert len({fault["name"] for fault in FAULTS}) == len(FAULTS) > 20


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_a_fault_can_be_planted_and_its_tests_are_there(fault: dict) -> None:
    assert mutants.planted(fault, mutants.ROOT) != (mutants.ROOT / fault["file"]).read_text("utf-8")
    assert fault["tests"]
    for test in fault["tests"]:
        file, _, name = test.partition("::")
        tree = ast.parse((mutants.ROOT / file).read_text("utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not name or name.partition("[")[0] in functions, test


def test_excused_faults_are_faults() -> None:
    excused = mutants.excused(mutants.EXCUSES.read_text(encoding="utf-8"))
    assert excused <= {fault["name"] for fault in FAULTS}
