from pathlib import Path

from job import codec_of, logged, released

with logged(snakemake):
    from neuromf.config import Evaluate
    from neuromf.device import choose_device
    from neuromf.evaluation.evaluate import evaluate_reference

    params, output = snakemake.params, snakemake.output
    evaluate_reference(
        released(snakemake),
        codec_of(snakemake),
        Evaluate(**params.settings),
        release=Path(params.release).stem,
        n=params.n,
        codec_validation=Path(snakemake.input.codec_validation),
        cache=Path(snakemake.resources.cache),
        part=Path(output.part),
        reference=Path(output.reference),
        reconstructions=Path(output.reconstructions),
        weights_dir=Path(snakemake.resources.weights_dir) if snakemake.resources.weights_dir else None,
        device=choose_device(snakemake.resources.device),
    )
