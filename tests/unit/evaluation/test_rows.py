import json

import pandas as pd
import pytest

from neuromf.evaluation.inference import Estimate
from neuromf.evaluation.rows import METRIC_COLUMNS, Part, read_parquet, read_parts, write_parquet, write_parts
from neuromf.tables import TableError


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


def test_damaged_parts_and_tables_are_refused_by_name(tmp_path):
    part, table = tmp_path / "part.json", tmp_path / "m.parquet"
    write_parts(part, [Part("r", "run", metrics=[{"value": 0.5}])], {})
    part.write_text(part.read_text().replace("0.5", "0.6"))
    with pytest.raises(TableError, match=r"part\.json is damaged: its figures are not what was written"):
        read_parts(part)
    write_parquet(table, [{"value": float(i)} for i in range(1000)], METRIC_COLUMNS)
    whole, content = read_parquet(table), table.read_bytes()
    assert whole["value"].sum() == 499500
    refused = 0
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")  # names and types, which have no checksum
    for at in range(4, footer, footer // 40):
        damaged = bytearray(content)
        damaged[at] ^= 1
        table.write_bytes(damaged)
        try:
            pd.testing.assert_frame_equal(read_parquet(table), whole)
        except TableError as error:
            assert "m.parquet is damaged" in str(error)
            refused += 1
    assert refused > 10
    with pytest.raises(TableError, match=r"none\.parquet does not exist"):
        read_parquet(tmp_path / "none.parquet")
