from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(neuromf\.[\w.]+)`", PAGE)))


def resolve(name: str) -> object:
    """Return what a dotted name means: the longest part that is a module, then attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", NAMES)
def test_methods_names_what_exists(name: str) -> None:
    assert resolve(name) is not None


def test_equations_in_the_flow_are_on_the_page() -> None:
    on_page = set(re.findall(r"^\| \((\d+)\)", PAGE, flags=re.MULTILINE))
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/neuromf/flow").glob("*.py"))
    in_code = set(re.findall(r"# \((\d+)\)", sources))
    assert on_page == {str(n) for n in range(1, len(on_page) + 1)}
    assert in_code and in_code <= on_page
