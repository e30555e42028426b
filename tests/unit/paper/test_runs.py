import csv

import pandas as pd
import pytest

from neuromf.paper.runs import difference_table, most_seeds, seed_table, seed_test_table, write_run_tables


def test_differences_stand_in_one_row_per_comparison(differences):
    table = difference_table(differences)
    assert table[["Set", "minus"]].to_numpy().tolist() == [
        ["meanflow, 1 NFE", "rectified flow, 1 NFE"], ["meanflow, 2 NFE", "rectified flow, 2 NFE"],
        ["meanflow, 2 NFE", "meanflow, 1 NFE"], ["rectified flow, 2 NFE", "rectified flow, 1 NFE"],
    ]  # fmt: skip
    first = table.iloc[0]
    assert first["KID (codec) ×1000 ↓"] == "-12.4 [-18.6, -6.2]" and first["Brain volume (ml)"] == "41 [21, 62]"
    assert first["Fréchet distance (codec) ↓"] == "–" and first["High-frequency energy ρ"] == "–"


def test_seeds_have_mean_and_sd_and_tests_their_effects(seed_tests):
    tests = pd.read_parquet(seed_tests(4, ("meanflow", "rectified_flow", "other")))
    assert most_seeds(tests) == 4
    spread = tests[(tests["test"] == "seeds") & (tests["run"] == "rectified_flow")].set_index("metric")
    table = seed_table(tests).set_index("Run")
    brain = spread.loc["volume_ml"]
    assert table.loc["rectified flow", "Brain volume (ml)"] == f"{brain['value']:.0f} ± {brain['sd']:.0f}"
    found = seed_test_table(tests)
    assert found["Test"].value_counts().to_dict() == {"Welch": 6, "Tukey": 6, "ANOVA": 2}
    anova = found[found["Test"] == "ANOVA"].iloc[0]
    assert (
        anova["Run"] == "meanflow, rectified flow, other" and anova["minus"] == "–" and anova["Effect"].startswith("η²")
    )
    welch = tests[(tests["test"] == "welch") & (tests["metric"] == "volume_ml")].iloc[0]
    shown = found[(found["Test"] == "Welch") & (found["Figure"] == "Brain volume (ml)")].iloc[0]
    assert shown["Difference"].startswith(f"{welch['value']:.0f} [") and shown["Effect"].startswith(
        f"{welch['effect']:.2f} ["
    )
    assert shown["p"] == (f"{welch['p']:.3f}" if welch["p"] >= 0.001 else "< 0.001")


def test_one_seed_has_no_sd_and_no_test(seed_tests):
    tests = pd.read_parquet(seed_tests(1))
    assert most_seeds(tests) == 1 and seed_test_table(tests).empty
    assert not seed_table(tests).map(lambda cell: "±" in cell).any(axis=None)


@pytest.mark.parametrize("seeds", [1, 3])
def test_csv_and_latex_hold_the_same_rows(differences, seed_tests, tmp_path, seeds):
    differences.to_parquet(tmp_path / "differences.parquet")
    write_run_tables(tmp_path / "differences.parquet", seed_tests(seeds), tmp_path / "paper")
    for name, rows in (("differences", 4), ("seeds", 2), ("seed_tests", 2 * (seeds > 1))):
        with (tmp_path / f"paper/{name}.csv").open(encoding="utf-8") as stream:
            written = list(csv.reader(stream))
        latex = (tmp_path / f"paper/{name}.tex").read_text(encoding="utf-8")
        assert len(written) == rows + 1 == sum(line.endswith(r"\\") for line in latex.splitlines()) and latex.isascii()
