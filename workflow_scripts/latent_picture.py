from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.paper.latents import draw_latents

    draw_latents(Path(snakemake.input[0]), Path(snakemake.output[0]))
