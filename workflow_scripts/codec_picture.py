from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.paper.codec import draw_worst

    draw_worst(Path(snakemake.input.validation), Path(snakemake.input.worst), Path(snakemake.output[0]))
