from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf import tables
    from neuromf.shards import check_failures

    manifests = [Path(manifest) for manifest in snakemake.input]
    failed = check_failures(manifests, snakemake.params.max_failed_fraction)
    tables.write_manifest(Path(snakemake.output[0]), failed)
