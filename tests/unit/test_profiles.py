"""The profiles of a workstation and of a cluster."""

import yaml
from builders import REPOSITORY

SHARED = ("scheduler", "keep-going", "rerun-incomplete", "rerun-triggers", "max-checksum-file-size")


def profile(name: str) -> dict:
    return yaml.safe_load((REPOSITORY / "profiles" / name / "config.yaml").read_text())


def test_the_profiles_agree_on_what_runs_again():
    workstation, cluster = profile("default"), profile("slurm")
    assert {key: cluster[key] for key in SHARED} == {key: workstation[key] for key in SHARED}


def test_every_rule_that_the_cluster_names_is_there():
    rules = "".join(path.read_text() for path in (REPOSITORY / "rules").glob("*.smk"))
    cluster = profile("slurm")
    for rule in (*cluster["set-resources"], *cluster["slurm-array-jobs"].split(",")):
        assert f"rule {rule}:" in rules
