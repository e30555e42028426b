"""The typed configuration: defaults, presets, runs and the messages of errors."""

from pathlib import Path

import pytest

from neuromf import config

REPOSITORY = Path(__file__).parents[2]
PRESETS = REPOSITORY / "config" / "presets"


def test_defaults_are_the_published_method():
    c = config.Config()
    assert c.preprocess.conform.shape == (128, 128, 128)
    assert c.preprocess.conform.spacing_mm == 1.0
    assert c.codec.channels == (64, 128, 256)
    assert c.codec.latent_channels == 4
    assert c.network.channels == (64, 128, 256, 512)
    assert (c.flow.times.mean, c.flow.times.std, c.flow.times.t_min, c.flow.times.r_equals_t) == (0.8, 0.8, 0.05, 0.5)
    assert (c.flow.prediction, c.flow.variant) == ("x", "imf")


@pytest.mark.parametrize("preset", sorted(p.stem for p in PRESETS.glob("*.yaml")))
def test_presets_are_valid(preset):
    assert config.load({"preset": preset}, PRESETS).preset == preset


def test_methodology_is_the_defaults_but_for_weights_and_training():
    loaded = config.load({"preset": "methodology"}, PRESETS)
    assert loaded.flow == config.Flow()
    assert loaded.network == config.Network()
    assert loaded.preprocess.conform == config.Preprocess().conform


def test_shipped_configuration_runs_the_demo():
    shipped = config.load(config.read_yaml(REPOSITORY / "config" / "config.yaml"), PRESETS)
    assert (shipped.preset, shipped.release) == ("demo", "demo")
    assert list(shipped.runs) == ["meanflow", "rectified_flow"]
    assert shipped.for_run("rectified_flow").flow.variant == "rectified_flow"
    assert shipped.for_run("meanflow").flow.variant == "imf"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trian": {}}, "trian: unknown key; did you mean 'train'?"),
        ({"train": {"updtes": 1}}, "train.updtes: unknown key; did you mean 'updates'?"),
        ({"runs": {"a": {"flow": {"varient": "imf"}}}}, "runs.a.flow.varient: unknown key; did you mean 'variant'?"),
        ({"train": {"updates": -1}}, "train.updates = -1"),
        ({"train": {"updates": "many"}}, "train.updates = 'many'"),
        ({"preset": "dmeo"}, "did you mean 'demo'?"),
        ({"preset": "9" * 300}, "no preset '999"),
        ({"preset": ["demo"]}, "no preset ['demo']"),
        ({"preset": "../presets/demo"}, "no preset '../presets/demo'"),
        ({"preprocess": {"conform": {"shape": [10, 10, 10]}}}, "multiple of 4"),
        ({"preprocess": {"conform": {"percentiles": [99, 1]}}}, "low < high"),
        ({"network": {"channels": [8]}}, "one entry per level"),
        ({"runs": {}}, "at least one run"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate = nan"),
        ({"train": {"updates": list(range(10**6))}}, "train.updates = [0, 1, 2, 3, 4, 5, ...]"),
        ({"preprocess": {"conform": {"shape": [10**6] * 3}}}, "preprocess.conform.shape.0 = 1000000"),
        ({"codec": {"channels": [8, 10**9, 8]}}, "codec.channels.1 = 1000000000"),
        ({"network": {"residual_blocks": 10**9}}, "network.residual_blocks = 1000000000"),
    ],
)
def test_wrong_settings_are_refused_with_a_remedy(settings, message):
    with pytest.raises(config.ConfigError) as error:
        config.load(settings, PRESETS)
    assert message in str(error.value)


def test_an_unknown_run_is_refused():
    with pytest.raises(config.ConfigError, match="did you mean 'meanflow'"):
        config.Config().for_run("meanflo")


def test_overlay_merges_mappings_and_replaces_the_rest():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1, "runs": {"x": {}}}
    changes = {"a": {"c": [3]}, "runs": {"y": {}}}
    assert config.overlay(base, changes) == {"a": {"b": 1, "c": [3]}, "d": 1, "runs": {"y": {}}}


def test_a_yaml_file_that_is_no_mapping_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(config.ConfigError, match="found list"):
        config.read_yaml(path)


def test_only_runs_that_there_are_may_be_trained_again():
    settings = {"runs": {"meanflow": {}, "other": {"train": {"updates": 5}}}}
    c = config.validate(settings | {"retrain": ["meanflow", "other"]})
    assert c.retrain == ("meanflow", "other")
    assert c.for_run("other").train.updates == 5
    with pytest.raises(config.ConfigError, match="retrain: 'meanflwo' is not in runs; did you mean 'meanflow'"):
        config.validate(settings | {"retrain": ["meanflwo"]})


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe",
        b"a: [",
        b"a: 2020-13-45",
        b"a: !!timestamp x",
        b"a: !!python/object/apply:os.system [ls]",
        b"[" * 5000,
    ],
)
def test_a_file_that_is_no_yaml_is_one_kind_of_error(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    with pytest.raises(config.ConfigError, match=r"config\.yaml is no valid YAML"):
        config.read_yaml(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(config.ConfigError, match=r"none\.yaml cannot be read: No such file"):
        config.read_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("part", ["sample.n", "codec.name", "preprocess.conform.spacing_mm", "device"])
def test_what_all_runs_share_is_refused_in_one(part):
    overrides = {
        "sample.n": {"sample": {"n": 5}},
        "codec.name": {"codec": {"name": "other"}},
        "device": {"device": "cpu"},
    }
    overrides["preprocess.conform.spacing_mm"] = {"preprocess": {"conform": {"spacing_mm": 2.0}}}
    with pytest.raises(config.ConfigError, match=r"runs\.a\..*all runs share this setting"):
        config.validate({"runs": {"a": overrides[part]}})
    config.validate({"runs": {"a": {"sample": {"nfe": [1]}, "train": {"seeds": [1]}, "network": {}, "flow": {}}}})


def test_null_on_snakemakes_command_line_is_none():
    loaded = config.load({"preset": "demo", "weights_dir": "null", "train": {"warm_start": "null"}}, PRESETS)
    assert loaded.weights_dir is None and loaded.train.warm_start is None
