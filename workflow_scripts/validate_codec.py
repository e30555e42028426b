from pathlib import Path

from job import codec_of, logged, released

with logged(snakemake):
    from neuromf.codec.perceptual import SliceLpips
    from neuromf.codec.validate import validate_codec

    volumes = released(snakemake)
    train, test = (list(volumes[split].values()) for split in ("train", "test"))
    validate_codec(
        codec_of(snakemake),
        train,
        test,
        Path(snakemake.output.figures),
        lpips=SliceLpips.load_if_there(snakemake.resources.weights_dir or None),
        worst=Path(snakemake.output.worst),
    )
