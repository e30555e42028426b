"""The README shows the workflow as it is."""

import subprocess

from builders import BIN, REPOSITORY

from neuromf import readme


def test_the_drawing_is_that_of_the_rules():
    command = [str(BIN / "snakemake"), "--rulegraph", "mermaid-js"]
    graph = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert readme.drawn((REPOSITORY / "README.md").read_text(encoding="utf-8")) == readme.edges(graph)
