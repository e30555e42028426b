"""The gate on hand-made validations: what passes, what stops, what cannot be measured."""

from __future__ import annotations

import json
import logging

import pytest

from neuromf.config import CodecGate
from neuromf.evaluation.codec_gate import COLUMNS, CodecGateError, check_codec

GOOD = {"ssim_brain": 0.95, "psnr_brain": 32.0, "lpips_sagittal": 0.05, "lpips_coronal": 0.06, "lpips_axial": 0.07}


@pytest.fixture
def validation(tmp_path):
    """Write a validation of four scans around the given means; the linear codec's rows are bad and must not count."""

    def write(**figures):
        rows = []
        for i in range(4):
            shifted = {
                name: None if value is None else value * (1 + 0.01 * (i - 1.5))
                for name, value in (GOOD | figures).items()
            }
            rows += [
                {"scan": f"s{i}", "codec": "vae"} | shifted,
                {"scan": f"s{i}", "codec": "linear"} | dict.fromkeys(GOOD, 0.5),
            ]
        (tmp_path / "codec.json").write_text(json.dumps({"codec": "tiny", "rows": rows}))
        return tmp_path / "codec.json"

    return write


def test_a_good_codec_passes_with_intervals(validation, settings, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    found = check_codec(validation(), CodecGate(), settings, tmp_path / "gate.tsv")
    assert [check.verdict for check in found] == ["passed"] * 5
    assert found[0].estimate.value == pytest.approx(0.95) and found[0].estimate.n == 4
    assert found[0].estimate.low < 0.95 < found[0].estimate.high
    lines = [line.split("\t") for line in (tmp_path / "gate.tsv").read_text().splitlines()]
    assert tuple(lines[0]) == COLUMNS and lines[2][0] == "psnr_brain" and lines[2][-2:] == ["≥ 30", "passed"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("figure", "value"), [("ssim_brain", 0.89), ("psnr_brain", 29.9), ("lpips_coronal", 0.11), ("lpips_axial", 0.2)]
)
def test_each_figure_can_stop_training_with_a_table(figure, value, validation, settings, tmp_path):
    with pytest.raises(CodecGateError, match="No flow is trained") as error:
        check_codec(validation(**{figure: value}), CodecGate(), settings, tmp_path / "gate.tsv")
    failed = [line for line in str(error.value).splitlines() if line.endswith("failed")]
    assert len(failed) == 1 and failed[0].split()[0] == figure and f"{value:.3f}" in failed[0]
    assert not (tmp_path / "gate.tsv").exists()


def test_warn_lets_training_go_on(validation, settings, tmp_path, caplog):
    found = check_codec(validation(psnr_brain=20.0), CodecGate(action="warn"), settings, tmp_path / "gate.tsv")
    assert found[1].verdict == "failed" and "failed" in (tmp_path / "gate.tsv").read_text()
    assert "psnr_brain" in caplog.text and "20.000" in caplog.text


def test_thresholds_themselves_pass(validation, settings, tmp_path):
    found = check_codec(
        validation(), CodecGate(ssim=0.5, psnr_db=32.0 - 1e-9, lpips=0.07 + 1e-9), settings, tmp_path / "g"
    )
    assert {check.verdict for check in found} == {"passed"}


def test_lpips_that_was_not_measured_warns_and_does_not_pass(validation, settings, tmp_path, caplog):
    unmeasured = {f"lpips_{plane}": None for plane in ("sagittal", "coronal", "axial")}
    found = check_codec(validation(**unmeasured), CodecGate(), settings, tmp_path / "gate.tsv")
    assert [check.verdict for check in found] == ["passed", "passed"] + ["not measured"] * 3
    assert "not measured" in caplog.text and "LPIPS needs weights" in caplog.text
    assert (tmp_path / "gate.tsv").read_text().count("n/a\tn/a\tn/a\t0\t≤ 0.1\tnot measured") == 3
    caplog.clear()
    with pytest.raises(CodecGateError, match="not measured"):
        check_codec(validation(ssim_brain=0.1, **unmeasured), CodecGate(), settings, tmp_path / "gate.tsv")
