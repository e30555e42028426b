from pathlib import Path

from job import latent_stores, logged

with logged(snakemake):
    from neuromf import tables
    from neuromf.latents.statistics import compute_statistics

    release = Path(snakemake.params.release)
    statistics = compute_statistics(
        latent_stores(snakemake)["train"], tables.release_sha256(tables.read_release(release))
    )
    statistics.write(Path(snakemake.output[0]))
