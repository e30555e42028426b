"""Fixtures of the workflow tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import SCANS, write_scan


@pytest.fixture(scope="session")
def bids(tmp_path_factory) -> Path:
    """A BIDS folder of stripped brains."""
    root = tmp_path_factory.mktemp("bids")
    (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
    for index in range(SCANS):
        write_scan(root, f"p{index:02d}", index)
    return root
