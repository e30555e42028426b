"""docs/reliability.md names tests that exist, and every test of the faults' own files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (REPOSITORY / "docs/reliability.md").read_text("utf-8"))))


def names_in(path: str) -> set[str]:
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_table_has_tests() -> None:
    assert len(NAMED) > 50


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_every_named_test_exists(path: str) -> None:
    assert {name for where, name in NAMED if where == path} <= names_in(path)


@pytest.mark.parametrize(
    "path", ["tests/unit/test_faults.py", "tests/workflow/test_faults.py", "tests/unit/test_fuzz.py"]
)
def test_every_test_of_a_fault_is_in_the_table(path: str) -> None:
    helpers = {"test_other_errors_are_left_as_they_are"}
    assert names_in(path) - helpers <= {name for where, name in NAMED if where == path}
