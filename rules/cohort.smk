# Raw scans. Users' scans are where their table says; the demo's are made here.


rule phantom:
    output:
        HEADS,
    log:
        "results/logs/phantom/{cohort}-{shard}.log",
    benchmark:
        "results/benchmarks/phantom/{cohort}-{shard}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: 32
    resources:
        **pool(2000),
    params:
        rows=shard_rows,
        settings=CONFIG.phantom.model_dump(mode="json"),
        shard_size=CONFIG.shard_size,
        lost=lost(HEADS),
        code=CODE["phantom"],
    script:
        "../workflow_scripts/phantom.py"
