"""What a stage does to one scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuromf.tables import ManifestRow

Figures = dict[str, float | str]
Work = Callable[..., Figures]


@dataclass(frozen=True)
class Task:
    """One scan's work in a stage.

    ``inputs``' content and ``arguments`` (keyword arguments of the work function) decide the result and whether it is
    still valid; ``outputs[0]`` is the manifest's ``file``. With ``failed_upstream`` (a reason) nothing is done. ``made`` is
    the row of the stage that wrote ``inputs[0]``: its SHA-256 must be that of the file. Without it that is a raw file.
    """

    scan_id: str
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    failed_upstream: str = ""
    made: ManifestRow | None = None

    @property
    def raw(self) -> Path | None:
        """The raw file that it reads, if it reads one."""
        return self.inputs[0] if self.inputs and self.made is None else None
