from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf.config import CodecGate, Evaluate
    from neuromf.evaluation.codec_gate import check_codec

    params = snakemake.params
    check_codec(
        Path(snakemake.input[0]), CodecGate(**params.gate), Evaluate(**params.settings), Path(snakemake.output[0])
    )
