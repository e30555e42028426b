from pathlib import Path

from job import codec_of, latent_stores, logged

with logged(snakemake):
    from neuromf.generation.generate import decode_latents, read_latents

    decode_latents(
        codec_of(snakemake),
        read_latents(Path(snakemake.input.latents)),
        Path(snakemake.output.participants).parent,
        latent_stores(snakemake)["train"],
    )
