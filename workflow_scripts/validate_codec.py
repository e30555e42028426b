from pathlib import Path

from job import codec_of, logged, released

with logged(snakemake):
    from neuromf.codec.validate import validate_codec

    volumes = released(snakemake)
    train, test = (list(volumes[split].values()) for split in ("train", "test"))
    validate_codec(codec_of(snakemake), train, test, Path(snakemake.output[0]))
