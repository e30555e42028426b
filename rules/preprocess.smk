# Raw scan → brain → bias corrected → common grid and intensity range: one job per shard and stage.


rule skull_strip:
    input:
        raw_heads,
    output:
        "results/cohorts/{cohort}/preprocessed/manifests/skull_strip/shard-{shard}.tsv",
    log:
        "results/logs/skull_strip/{cohort}-{shard}.log",
    benchmark:
        "results/benchmarks/skull_strip/{cohort}-{shard}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: 32
    resources:
        **(pool(2000) if CONFIG.preprocess.skull_strip.backend in ("template", "none") else NETWORK_JOB),
        device=CONFIG.device,
        weights_dir=weights_folder(),
    params:
        rows=shard_rows,
        settings=CONFIG.preprocess.skull_strip.model_dump(mode="json"),
        shard_size=CONFIG.shard_size,
        lost=lost(MANIFEST.replace("{stage}", "skull_strip")),
        raw=changed_raw,
        code=CODE["skull_strip"],
    script:
        "../workflow_scripts/skull_strip.py"


rule bias_correct:
    input:
        "results/cohorts/{cohort}/preprocessed/manifests/skull_strip/shard-{shard}.tsv",
    output:
        "results/cohorts/{cohort}/preprocessed/manifests/bias_correct/shard-{shard}.tsv",
    log:
        "results/logs/bias_correct/{cohort}-{shard}.log",
    benchmark:
        "results/benchmarks/bias_correct/{cohort}-{shard}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: 32
    resources:
        **pool(700),
    params:
        settings=CONFIG.preprocess.bias_field.model_dump(mode="json"),
        shard_size=CONFIG.shard_size,
        lost=lost(MANIFEST.replace("{stage}", "bias_correct")),
        code=CODE["bias_correct"],
    script:
        "../workflow_scripts/bias_correct.py"


rule conform:
    input:
        "results/cohorts/{cohort}/preprocessed/manifests/bias_correct/shard-{shard}.tsv",
    output:
        "results/cohorts/{cohort}/preprocessed/manifests/conform/shard-{shard}.tsv",
    log:
        "results/logs/conform/{cohort}-{shard}.log",
    benchmark:
        "results/benchmarks/conform/{cohort}-{shard}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: 32
    resources:
        **pool(600),
    params:
        settings=CONFIG.preprocess.conform.model_dump(mode="json"),
        shard_size=CONFIG.shard_size,
        lost=lost(MANIFEST.replace("{stage}", "conform")),
        code=CODE["conform"],
    script:
        "../workflow_scripts/conform.py"


rule check_failures:
    input:
        lambda wildcards: manifests(wildcards.cohort, "conform"),
    output:
        failed="results/cohorts/{cohort}/preprocessed/failed.tsv",
        duplicates="results/cohorts/{cohort}/preprocessed/duplicates.tsv",  # no job asks for it: older studies have none
    log:
        "results/logs/check_failures/{cohort}.log",
    benchmark:
        "results/benchmarks/check_failures/{cohort}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        max_failed_fraction=CONFIG.max_failed_fraction,
        lost=lambda wildcards: lost_note(Path(failed_table(wildcards.cohort))),
    script:
        "../workflow_scripts/check_failures.py"
