from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.paper.torus import draw_torus

    draw_torus(Path(snakemake.input.rows).parent, Path(snakemake.output[0]))
