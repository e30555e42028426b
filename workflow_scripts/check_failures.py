from pathlib import Path

from job import logged

with logged(snakemake):
    from neuromf import tables
    from neuromf.cohort.duplicates import find_duplicates, write_duplicates
    from neuromf.shards import check_failures

    manifests = [Path(manifest) for manifest in snakemake.input]
    failed = check_failures(manifests, snakemake.params.max_failed_fraction)
    tables.write_manifest(Path(snakemake.output.failed), failed)
    duplicates = find_duplicates({snakemake.wildcards.cohort: manifests})
    write_duplicates(Path(snakemake.output.duplicates), duplicates)
