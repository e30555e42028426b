from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.paper.spectrum import draw_spectra

    draw_spectra(Path(snakemake.input[0]), Path(snakemake.output[0]), k0=snakemake.params.k0)
