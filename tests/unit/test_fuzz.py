"""Every reader against spoilt files: it reads them or says what is wrong; nothing else, no hang and no blow-up of memory.

This is a short, repeatable sample. `python benchmarks/fuzz.py --minutes 10` tries new files for as long as it is let.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from readers import READERS

EXAMPLES = 40
SLOW = {"model.json": 10, "model.safetensors": 10, "codec.json": 10, "codec.safetensors": 10}  # networks are built


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_spoilt_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    reader = READERS[name]
    reader.write(tmp_path)
    whole = (tmp_path / reader.file).read_bytes()
    assert not reader.attempt(tmp_path, whole)
    refused = []

    @settings(
        max_examples=SLOW.get(name, EXAMPLES), derandomize=True, database=None, deadline=None,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(reader.spoil(whole))
    def spoil(content: bytes) -> None:
        refused.append(reader.attempt(tmp_path, content))

    spoil()
    assert any(refused) or not reader.errors
