"""The README's drawing of the workflow."""

import pytest

from neuromf import readme

RULEGRAPH = """---
title: DAG
---
flowchart TB
\tid0[all]
\tid1[report]
\tid2[train]
\tstyle id0 fill:#D95757
\tid1 --> id0
\tid2 --> id1
"""
PAGE = f"# Title\n{readme.START}old\n{readme.END}\nrest\n"


def test_edges_leave_out_the_target_that_only_collects():
    assert readme.edges(RULEGRAPH) == {("train", "report")}


def test_redrawing_replaces_the_drawing_only():
    page = readme.redraw(PAGE, RULEGRAPH)
    assert readme.drawn(page) == {("train", "report")}
    assert page.startswith("# Title\n") and page.endswith("\nrest\n") and "old" not in page
    assert readme.redraw(page, RULEGRAPH) == page


def test_a_readme_without_a_place_is_refused():
    with pytest.raises(ValueError, match="lacks the lines"):
        readme.redraw("# Title\n", RULEGRAPH)
