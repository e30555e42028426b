from pathlib import Path

from job import codec_of, logged

with logged(snakemake):
    from neuromf.config import Evaluate
    from neuromf.device import choose_device
    from neuromf.evaluation.evaluate import evaluate_samples

    wildcards, params = snakemake.wildcards, snakemake.params
    evaluate_samples(
        Path(snakemake.input.participants).parent,
        Path(snakemake.input.reference),
        codec_of(snakemake),
        Evaluate(**params.settings),
        release=Path(params.release).stem,
        run=wildcards.run,
        seed=int(wildcards.seed),
        nfe=int(wildcards.nfe),
        cache=Path(snakemake.resources.cache),
        part=Path(snakemake.output[0]),
        weights_dir=Path(snakemake.resources.weights_dir) if snakemake.resources.weights_dir else None,
        device=choose_device(snakemake.resources.device),
    )
