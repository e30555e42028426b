"""What the catalogue of Snakemake workflows and GitHub find here."""

import re
import subprocess

import yaml
from builders import BIN, REPOSITORY


def jobs(folder, *arguments):
    command = [str(BIN / "snakemake"), "--dry-run", "--quiet", "reason", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE)


def test_the_workflow_folder_holds_the_same_workflow(tmp_path):
    (tmp_path / "config").symlink_to(REPOSITORY / "config")
    profile = ("--workflow-profile", str(REPOSITORY / "profiles" / "default"))
    planned = jobs(tmp_path, "--snakefile", str(REPOSITORY / "workflow" / "Snakefile"), *profile)
    assert ("train", "2") in planned
    assert planned == jobs(tmp_path, "--snakefile", str(REPOSITORY / "Snakefile"))
    usage = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert (REPOSITORY / usage["mandatory-flags"]["flags"].split()[-1] / "config.yaml").is_file()


def test_github_runs_what_continuous_integration_runs():
    steps = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["check-and-test"][
        "steps"
    ]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
