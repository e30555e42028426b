"""The presets against the documents that the method comes from: docs/methods.md's table says what they hold."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest

from neuromf.config import Config, load

ROOT = Path(__file__).parents[2]
PRESETS = ROOT / "config" / "presets"
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split("## Presets and documents")[1]
HEADER, *TABLE = [line for line in PAGE.splitlines() if line.startswith("| `") or line.startswith("| setting")]
NAMES = re.findall(r"`(methodology\w*)`", HEADER)


def cells(line: str) -> list[str]:
    return [cell.strip(" `") for cell in line.strip("|").split("|")]


def value(config: Config, setting: str) -> Any:
    return functools.reduce(getattr, setting.split("."), config)


def written(of: Any) -> str:
    return str(list(of)) if isinstance(of, tuple) else str(of)


@pytest.mark.parametrize("row", TABLE, ids=[cells(row)[0] for row in TABLE])
def test_the_table_is_what_the_presets_hold(row: str) -> None:
    setting, _, *values = cells(row)
    assert [written(value(load({"preset": name}, PRESETS), setting)) for name in NAMES] == values


def test_the_table_names_every_preset_of_the_method() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in PRESETS.glob("methodology*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_preset_sets_stands_in_the_table_or_chooses_files(name: str) -> None:
    """So that no preset comes to say something that the page does not."""

    def leaves(settings: dict[str, Any], prefix: str = "") -> list[str]:
        return [
            leaf
            for key, of in settings.items()
            for leaf in (leaves(of, f"{prefix}{key}.") if isinstance(of, dict) else [f"{prefix}{key}"])
        ]

    from neuromf.config import read_yaml

    told = {cells(row)[0] for row in TABLE}
    machine = {"codec.name", "codec.weights", "evaluate.extractors", "evaluate.segmenters"}
    machine |= {f"train.{key}" for key in ("batch_size", "precision", "warmup_updates", "validate_every")}
    machine |= {"train.checkpoint_every", "train.samples_every"}
    assert set(leaves(read_yaml(PRESETS / f"{name}.yaml"))) - machine <= told
