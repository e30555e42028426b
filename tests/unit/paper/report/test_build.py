import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from neuromf.paper.report.build import ReportInputs, SampleSet, TrainingRun, build_report

VOID = {"meta", "link", "img", "source", "br"}


class Page(HTMLParser):
    """Collects ids, links, resources and whether the tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.resources, self.open, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.resources += [value for key, value in attrs if key in ("src", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def inputs(evaluated):
    return ReportInputs(
        release="demo",
        release_table=evaluated.release_table,
        manifests=evaluated.manifests,
        metrics=evaluated.metrics,
        scans=evaluated.scans,
        reconstructions=evaluated.reconstructions,
        codec_gate=evaluated.codec_gate,
        codec_picture=evaluated.codec_picture,
        latents=evaluated.latents,
        spectra=evaluated.spectra,
        copies_picture=evaluated.copies_picture,
        differences=evaluated.differences,
        seed_tests=evaluated.seed_tests,
        samples=[SampleSet(run, 0, nfe, folder) for (run, nfe), folder in reversed(evaluated.samples.items())],
        training=[TrainingRun(run, 0, folder) for run, folder in evaluated.training.items()],
        config=evaluated.config,
        git_commit="abc123",
    )


def build(inputs, tmp_path):
    paths = {"page": tmp_path / "index.html", "picture": tmp_path / "p.png", "table": tmp_path / "t.csv"}
    build_report(inputs, **paths)
    return paths


def test_the_page_is_whole_self_contained_escaped_and_repeatable(inputs, tmp_path, nasty):
    paths = build(inputs, tmp_path)
    text = paths["page"].read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert all(resource.startswith("data:image/") for resource in page.resources) and len(page.resources) > 8
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"data:[^\"]*", "", text))
    assert "script" not in page.tags and nasty not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; damaged" in text and "&lt;lies&gt;" in text
    assert [link.removeprefix("#") for link in page.links] == page.ids
    for part in ("warm start <b>demo</b>", "random weights", "abc123", "c" * 64, "d" * 64, "no contrast", "1,234,567",
                 "that no model was trained on", "generated with one network evaluation", "misses a threshold",
                 "LPIPS was not measured", "above 25 % of the grid",
                 "Relatively closer than 95 % of it", "most look like copies", "20 training latents",
                 "19 dimensions", "Network: Fast CPU, threads: 2, no joules told",
                 "Decoder: Other CPU, threads: 2, joules by RAPL", "meanflow, 2 NFE", "-12.4",
                 "trained with one seed"):  # fmt: skip
        assert part in text
    assert "than 99 % of the null (%)" not in text  # 19 scans cannot tell
    assert text.count("One-step samples at update") == 2 * 3, "of four pictures the first, the last and one between"
    assert "<td>0.06</td><td>0.03</td><td>0.03</td>" in text  # (1 + 2) / 50 at update 50, (1 + 2) / 100 at the end
    assert "<td>0.2500</td><td>0.5000</td>" in text
    assert "meanflow generates" in text  # the first run of the configuration is the main one, whatever the order
    assert paths["picture"].read_bytes().startswith(b"\x89PNG")
    assert paths["table"].is_file() and paths["table"].with_suffix(".tex").is_file()
    assert build(inputs, tmp_path)["page"].read_text(encoding="utf-8") == text


def test_seeds_are_shown_with_their_tests_and_hardware_with_its_samples(inputs, seed_tests, evaluated, tmp_path):
    seed_tests(3)
    machine = {"device": "cuda", "name": "Big GPU", "threads": None, "joules": "NVML"}
    timing = evaluated.samples["meanflow", 1] / "sample_timing.json"
    timing.write_text(json.dumps({"hardware": {"network": machine, "decode": machine}}))
    (evaluated.samples["meanflow", 2] / "sample_timing.json").write_text("{}")
    first = [one for one in inputs.samples if one.run == "meanflow"]
    one = replace(inputs, differences=tmp_path / "none.parquet", samples=first, training=[])
    pd.read_parquet(inputs.differences).iloc[:0].to_parquet(one.differences)
    text = build(one, tmp_path)["page"].read_text(encoding="utf-8")
    for part in ("trained with one seed", "-12.4"):
        assert part not in text
    for part in ("nothing to compare it with", "Mean ± SD", "Welch",
                 "Network: Big GPU, joules by NVML (meanflow, seed 0, 1 NFE)",
                 "Network: unknown hardware, no joules told (meanflow, seed 0, 2 NFE)"):  # fmt: skip
        assert part in text


def test_a_report_without_samples_or_reconstructions_is_refused(inputs, tmp_path):
    with pytest.raises(ValueError, match="at least one folder of samples"):
        build(replace(inputs, samples=[]), tmp_path)
    with pytest.raises(ValueError, match="evaluate the release's real scans first"):
        build(replace(inputs, reconstructions=tmp_path / "nothing"), tmp_path)
