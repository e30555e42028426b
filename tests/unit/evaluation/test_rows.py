import json

import pandas as pd

from neuromf.evaluation.inference import Estimate
from neuromf.evaluation.rows import METRIC_COLUMNS, Part, write_parquet, write_parts


def test_a_part_keeps_its_run_and_missing_values(tmp_path):
    part = Part("demo", "meanflow", 0, 1)
    part.add("frechet_distance", "test", Estimate(1.5, 1.0, 2.0, 16), "codec")
    part.add("kernel_distance", "test", Estimate(None, None, None, 1), "codec")
    part.add_scan("sub-1", "generated", {"brain_ml": 1400.0})
    write_parts(tmp_path / "part.json", [part], {"neuromf": "x"})
    content = json.loads((tmp_path / "part.json").read_text())
    assert content["provenance"] == {"neuromf": "x"}
    metrics, scans = content["parts"][0]["metrics"], content["parts"][0]["scans"]
    assert metrics[0]["value"] == 1.5 and metrics[1]["value"] is None and scans[0]["brain_ml"] == 1400.0

    write_parquet(tmp_path / "m.parquet", metrics, METRIC_COLUMNS)
    table = pd.read_parquet(tmp_path / "m.parquet")
    assert tuple(table.columns) == METRIC_COLUMNS
    assert table["nfe"].dtype == "Int64" and table["value"].isna().tolist() == [False, True]
