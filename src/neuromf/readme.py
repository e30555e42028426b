"""The README's drawing of the workflow, generated from the rules.

``snakemake --rulegraph mermaid-js | python -m neuromf.readme`` redraws it; ``make generated`` does so.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

START, END = "<!-- drawn by `make generated` -->\n", "<!-- end of the drawing -->"
HIDDEN = {"all"}  # collects targets, does no work


def edges(rulegraph: str) -> set[tuple[str, str]]:
    """Return (rule, rule that follows) of a rule graph in Mermaid, as Snakemake prints it."""
    names = dict(re.findall(r"^\s*(id\d+)\[\"?(\w+)\"?\]", rulegraph, re.MULTILINE))
    arrows = re.findall(r"^\s*(id\d+) --> (id\d+)", rulegraph, re.MULTILINE)
    return {(names[a], names[b]) for a, b in arrows if not {names[a], names[b]} & HIDDEN}


def drawn(readme: str) -> set[tuple[str, str]]:
    """Return the edges that the README shows."""
    return set(re.findall(r"^\s*(\w+) --> (\w+)", readme, re.MULTILINE))


def redraw(readme: str, rulegraph: str) -> str:
    """Return the README with its drawing replaced by that of the rule graph.

    Raises:
        ValueError: the README has no place for a drawing.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"README.md lacks the lines {START.strip()} and {END}, between which the workflow is drawn")
    lines = "".join(f"    {a} --> {b}\n" for a, b in sorted(edges(rulegraph)))
    return f"{before}{START}```mermaid\nflowchart TB\n{lines}```\n{END}{after}"


if __name__ == "__main__":
    path = Path("README.md")
    path.write_text(redraw(path.read_text(encoding="utf-8"), sys.stdin.read()), encoding="utf-8")
