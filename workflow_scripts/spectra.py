from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.evaluation.spectrum import merge_spectra

    merge_spectra([Path(part) for part in snakemake.input], Path(snakemake.output[0]))
