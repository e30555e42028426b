from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.paper.regions import draw_regions

    draw_regions(Path(snakemake.input[0]), Path(snakemake.output[0]))
