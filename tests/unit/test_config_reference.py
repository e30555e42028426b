"""The generated reference and schema are those of the sources."""

from pathlib import Path

from neuromf import config_reference

CONFIG = Path(__file__).parents[2] / "config"


def test_the_reference_is_up_to_date():
    assert (CONFIG / "README.md").read_text(encoding="utf-8") == config_reference.reference()


def test_the_schema_is_up_to_date():
    assert (CONFIG / "schema.json").read_text(encoding="utf-8") == config_reference.schema()
