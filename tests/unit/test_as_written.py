"""Names that YAML and Snakemake's command line take for numbers and dates are taken back."""

from __future__ import annotations

import pytest
import yaml
from builders import REPOSITORY

# Snakemake's own reading of --config and of files is what the workflow gets
from snakemake.cli import parse_config
from snakemake.common.configfile import load_configfile

from neuromf import config, doctor
from neuromf.as_written import as_text, written

PRESETS = REPOSITORY / "config" / "presets"
NAMES = [
    "2024", "2024_01", "2024-01-02", "1e5", "1_000", "0123", "0x1F", "0b11", "0o17",
    "007", "on", "off", "yes", "no", "true", "True", "False",
    "null", "Null", "nan", "inf", "infinity", "1E400", "study", "12e", "9" * 60,
]  # fmt: skip


@pytest.fixture
def loaded(tmp_path):
    """Return what a workflow loads from the text of config.yaml, of another file and of the command line."""

    def load(text: str = "", *arguments: str, other: str = "") -> config.Config:
        files = [tmp_path / "config.yaml", tmp_path / "other.yaml"]
        settings: dict[str, object] = {}
        for file, content in zip(files, (text, other), strict=True):
            file.write_text(content or "{}")
            settings = config.overlay(settings, load_configfile(file))
        settings = config.overlay(settings, parse_config(arguments))
        return config.load(settings, PRESETS, written(files, arguments))

    return load


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_was_written(loaded, tmp_path, monkeypatch, name):
    assert loaded("", f"release={name}").release == name
    assert loaded("", f'release="{name}"').release == name
    assert loaded("release: study", f"release={name}").release == name
    assert loaded(f"release: {name}").release == name
    assert loaded(f"release: '{name}'").release == name
    assert loaded("release: study", other=f"release: {name}").release == name
    assert loaded(f"codec: {{name: {name}}}").codec.name == name
    assert loaded("", f"codec={{name: {name}}}").codec.name == name
    assert list(loaded(f"runs: {{{name}: {{}}, b: {{}}}}").runs) == [name, "b"]
    of_runs = loaded(f"runs: {{{name}: {{train: {{updates: 7}}}}}}\nretrain: [{name}]")
    assert of_runs.retrain == (name,) and of_runs.for_run(name).train.updates == 7
    assert loaded(f"runs: {{{name}: {{}}}}", f"retrain=[{name}]").retrain == (name,)
    monkeypatch.chdir(tmp_path)
    assert doctor.load_config(REPOSITORY, [f"release={name}"]).release == name


def test_the_command_line_lies_over_the_files(loaded):
    over = loaded("release: 2023\nruns: {2024_01: {}}", "runs={2024_01: {train: {updates: 3}}}", other="release: 1_0")
    assert over.release == "1_0" and list(over.runs) == ["2024_01"] and over.for_run("2024_01").train.updates == 3


@pytest.mark.parametrize("number", ["32", "0x20"])
def test_other_texts_are_taken_back_too_and_numbers_stay(loaded, number):
    given = loaded("train: {precision: 32, learning_rate: 1e-3, updates: 1_000}\nweights_dir: 2024\npreset: null")
    assert (given.train.precision, given.weights_dir, given.preset) == ("32", "2024", None)
    assert (given.train.learning_rate, given.train.updates) == (0.001, 1000)
    assert loaded("runs: {a: {train: {precision: 32}}}").for_run("a").train.precision == "32"
    assert loaded(f"train: {{updates: {number}}}").train.updates == 32


def test_a_preset_of_ones_own_too(tmp_path):
    (tmp_path / "own.yaml").write_text("codec: {name: 2024_01}\nruns: {1_0: {}}\ntrain: {precision: 32}\n")
    given = config.load({"preset": "own"}, tmp_path)
    assert (given.codec.name, list(given.runs), given.train.precision) == ("2024_01", ["1_0"], "32")


def test_what_cannot_be_taken_back_says_what_to_do():
    with pytest.raises(config.ConfigError, match="release = 202401: .*; in quotes it is a text"):
        config.load({"release": 202401}, PRESETS)
    with pytest.raises(config.ConfigError, match="release = 202401"):
        config.load({"release": 202401}, PRESETS, {"release": "another"})


@pytest.mark.parametrize(
    "text", ["release: ../x", "runs: {a b: {}}", "codec: {name: a/b}", "runs: {ok: {}}\nretrain: [../x]"]
)
def test_names_that_cannot_be_files_are_refused(text):
    with pytest.raises(config.ConfigError, match="use letters, digits, _ and -") as error:
        config.load(yaml.safe_load(text), PRESETS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["{", "[a", "a: b: c", "!!python/object/apply:os.system [ls]"])
def test_what_is_no_yaml_is_a_text(value):
    assert as_text(value) in (value, ["ls"]) and "release" in written(["/none.yaml"], [f"release={value}"])
