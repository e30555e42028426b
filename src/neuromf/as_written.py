"""Settings that are texts, as they were written.

YAML makes a number of ``2024_01`` and a date of ``2024-01-02``; so does Snakemake's ``--config``, which takes quotes away
first. Where a setting is a text, what was written counts: the sources are read once more, every value as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

RUNS = "runs"  # the mapping whose keys are names and whose values are settings again


def as_text(value: str) -> Any:
    """Return the value of a ``key=value`` argument as `snakemake --config` nests it: every scalar is a text."""
    value = value.strip("'\"")
    try:
        return yaml.load(value, yaml.BaseLoader)
    except Exception:  # PyYAML raises anything; what is no YAML is a plain text to Snakemake too
        return value


def written(files: Iterable[Path | str], arguments: Iterable[str] = ()) -> dict[str, Any]:
    """Return settings with every scalar as text: of YAML files, each laid over the one before, then of arguments.

    Args:
        files: those that are missing or no YAML are left out: whoever reads the settings themselves tells of them.
        arguments: ``key=value``, as of `snakemake --config`.
    """
    merged: dict[str, Any] = {}
    for file in map(Path, files):
        with suppress(Exception):
            content = yaml.load(file.read_text(encoding="utf-8-sig"), yaml.BaseLoader)
            merged = _merged(merged, content) if isinstance(content, Mapping) else merged
    for one in arguments:
        key, _, value = one.partition("=")
        merged = _merged(merged, {key: as_text(value)})
    return merged


def restored(model: type[BaseModel], settings: Mapping[str, Any], texts: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which numbers, dates and the like are texts again where ``model`` declares a text.

    Args:
        texts: the same settings as `written` returns them; a text that is read as another value than the setting's is none
            of it.
    """
    return {key: _restored(model, key, value, texts.get(key)) for key, value in settings.items()}


def _restored(model: type[BaseModel], key: str, value: Any, text: Any) -> Any:
    if key not in model.model_fields or text is None:
        return value
    if key == RUNS and isinstance(value, Mapping) and isinstance(text, Mapping):
        return _restored_runs(model, value, text)
    kind = model.model_fields[key].annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        both = isinstance(value, Mapping) and isinstance(text, Mapping)
        return restored(kind, value, text) if both else value
    if get_origin(kind) is tuple and isinstance(value, list) and isinstance(text, list) and len(value) == len(text):
        return [_scalar(get_args(kind)[0], one, its) for one, its in zip(value, text, strict=True)]
    return _scalar(kind, value, text)


def _restored_runs(model: type[BaseModel], runs: Mapping[Any, Any], texts: Mapping[str, Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, overrides in runs.items():
        name = _scalar(str, key, next((text for text in texts if _is_read_as(text, key)), None))
        if isinstance(overrides, Mapping) and isinstance(texts.get(name), Mapping):
            overrides = restored(model, overrides, texts[name])
        found = _merged(found, {name: overrides})
    return found


def _scalar(kind: Any, value: Any, text: Any) -> Any:
    optional = value is None and NoneType in get_args(kind)
    if isinstance(value, str) or optional or not isinstance(text, str) or not _is_text(kind):
        return value
    return text if _is_read_as(text, value) else value


def _is_text(kind: Any) -> bool:
    """Return whether a type is a text and no number: str, str | None, Literal["32", "bf16"] …"""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _is_text(parts[0])
    if origin is Literal:
        return any(isinstance(part, str) for part in parts)
    if origin in (Union, UnionType):
        return any(map(_is_text, parts)) and not {int, float, bool} & set(parts)
    return kind is str


def _is_read_as(text: str, value: Any) -> bool:
    return any(repr(one) == repr(value) for one in _readings(text))


def _readings(text: str) -> Iterator[Any]:
    """Yield what Snakemake's `--config` and YAML make of a text."""
    for read in (int, float, {"True": True, "False": False}.__getitem__, yaml.safe_load):
        with suppress(Exception):  # PyYAML raises anything: ValueError (a 13th month), AttributeError …
            yield read(text)


def _merged(base: Mapping[Any, Any], changes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return ``base`` with ``changes`` laid over it as Snakemake does: nested mappings merge."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
