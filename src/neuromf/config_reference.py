"""The reference of every setting, generated from `neuromf.config`: config/README.md and config/schema.json.

``python -m neuromf.config_reference`` writes both, with ``--check`` it only says whether they are up to date.
"""

from __future__ import annotations

import json
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from neuromf.config import Config

INTRODUCTION = """\
# Configuration reference

Generated from `src/neuromf/config.py` by `make generated`; edit the source, not this page.

The defaults are the published method. `config.yaml` names a preset of `presets/`, which is laid over the defaults, and
its own keys are laid over the preset; each entry of `runs` is laid over the result for that run. A key that does not
exist is refused with the nearest valid one. Editors complete and check `config.yaml` through `schema.json`.

| Preset | What it is for |
|---|---|
| `demo` | two CPU cores, minutes: 64³ at 3 mm, the codec and flow weights that ship with NeuroMF |
| `smoke` | seconds per stage, for tests: 32³ at 6 mm, tiny networks |
| `methodology` | the published setting: 128³ at 1 mm, latent 4×32³, MAISI networks; needs a GPU and the published VAE |
| `methodology_192` | a whole adult brain at 1 mm: 192³, latent 4×48³ |
| `methodology_v1` | the method as it was first written down, to show what its second state changed (docs/methods.md) |
"""
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def reference() -> str:
    """Return config/README.md."""
    lines = [INTRODUCTION]
    for title, model in _sections("", Config):
        lines += [f"## {title or 'Top level'}", "", (model.__doc__ or "").strip().splitlines()[0], ""]
        if rows := [_row(name, field) for name, field in model.model_fields.items() if _nested(field) is None]:
            lines += ["| Setting | Default | Unit | Bounds | What it does | Source |", "|---|---|---|---|---|---|"]
            lines += [*rows, ""]
    return "\n".join(lines)


def schema() -> str:
    """Return config/schema.json."""
    content = Config.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the files, or with ``--check`` exit with 1 when they are out of date."""
    stale = []
    for path, content in ((Path("config/README.md"), reference()), (Path("config/schema.json"), schema())):
        if path.is_file() and path.read_text(encoding="utf-8") == content:
            continue
        stale.append(str(path))
        if "--check" not in sys.argv:
            path.write_text(content, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"out of date: {', '.join(stale)}; run `make generated`")


def _sections(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        if (nested := _nested(field)) is not None:
            yield from _sections(f"{path}.{name}" if path else name, nested)


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _row(name: str, field: FieldInfo) -> str:
    about: dict[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = json.dumps(field.default, ensure_ascii=False)
    cells = [f"`{name}`", f"`{default}`", about["unit"], _bounds(field), field.description or "", about["source"]]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _bounds(field: FieldInfo) -> str:
    found = [f"{sign} {getattr(m, key):g}" for m in field.metadata for key, sign in BOUNDS.items() if hasattr(m, key)]
    if typing.get_origin(field.annotation) is typing.Literal:
        found.append(" or ".join(f"`{choice}`" for choice in typing.get_args(field.annotation)))
    return ", ".join(found)


if __name__ == "__main__":
    main()
