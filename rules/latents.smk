# Latents: the codec (one's own, where asked for), encoding of every shard, statistics of a release, the codec's gate.


if CONFIG.codec.weights == "trained" and not codec_is_made():

    rule train_codec:
        input:
            manifests=lambda wildcards: [
                CONFORMED.format(cohort=c, shard=s) for c in COHORTS for s in released_shards(c)
            ],
            failed=quality_gates,
        output:
            weights=f"{CODEC_FOLDER}/codec.safetensors",
            about=f"{CODEC_FOLDER}/codec.json",
            table=f"{CODEC_FOLDER}/training.csv",
        log:
            f"results/logs/train_codec/{CONFIG.codec.name}.log",
        benchmark:
            f"results/benchmarks/train_codec/{CONFIG.codec.name}.tsv"
        conda:
            "../envs/neuromf.yaml"
        threads: network_threads()
        resources:
            **NETWORK_JOB,
            stamp=CODEC_STAMP,
            device=CONFIG.device,
            weights_dir=weights_folder(),
        params:
            release=RELEASE_TABLE,
            codec=CONFIG.codec.model_dump(mode="json"),
            settings=CONFIG.codec_training.model_dump(mode="json"),
            upstream=CODEC_TRAINED_BY,
            code=CODE["train_codec"],
        script:
            "../workflow_scripts/train_codec.py"


rule encode:
    input:
        manifest="results/cohorts/{cohort}/preprocessed/manifests/conform/shard-{shard}.tsv",
        codec=trained_codec,
    output:
        latents="results/cohorts/{cohort}/latents/{codec}/shard-{shard}.safetensors",
        manifest="results/cohorts/{cohort}/latents/{codec}/shard-{shard}.tsv",
    log:
        "results/logs/encode/{cohort}-{codec}-{shard}.log",
    benchmark:
        "results/benchmarks/encode/{cohort}-{codec}-{shard}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: network_threads()
    resources:
        **NETWORK_JOB,
        device=CONFIG.device,
        weights_dir=weights_folder(),
    params:
        codec=CODEC_SETTINGS,
        shard_size=CONFIG.shard_size,
        lost=lost(ENCODED),
        code=CODE["encode"],
    script:
        "../workflow_scripts/encode.py"


rule latent_statistics:
    input:
        latents=released(LATENTS, "latent_statistics", ENCODED_BY),
        manifests=released(ENCODED, "latent_statistics", ENCODED_BY),
        failed=quality_gates,
    output:
        f"{RELEASE_FOLDER}/latent_statistics.json",
    log:
        f"results/logs/latent_statistics/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/latent_statistics/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
        stamp=stamp("latent_statistics"),
    params:
        release=RELEASE_TABLE,
        upstream=ENCODED_BY,
        code=CODE["statistics"],
    script:
        "../workflow_scripts/latent_statistics.py"


rule latent_distribution:
    input:
        latents=released(LATENTS, "latent_distribution", ENCODED_BY),
        manifests=released(ENCODED, "latent_distribution", ENCODED_BY),
        statistics=f"{RELEASE_FOLDER}/latent_statistics.json",
        failed=quality_gates,
    output:
        f"{RELEASE_FOLDER}/evaluation/latents.json",
    log:
        f"results/logs/latent_distribution/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/latent_distribution/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
        stamp=stamp("latent_distribution"),
    params:
        release=RELEASE_TABLE,
        settings=INTERVALS,
        upstream=ENCODED_BY,
        code=code("latent_distribution", "neuromf.evaluation.latents:describe_latents"),
    script:
        "../workflow_scripts/latent_distribution.py"


rule validate_codec:
    input:
        manifests=released(CONFORMED, "validate_codec", PREPROCESSED_BY),
        codec=trained_codec,
        failed=quality_gates,
    output:
        figures=f"{RELEASE_FOLDER}/evaluation/codec.json",
        worst=directory(f"{RELEASE_FOLDER}/evaluation/codec_worst"),
    log:
        f"results/logs/validate_codec/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/validate_codec/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: network_threads()
    resources:
        **NETWORK_JOB,
        stamp=stamp("validate_codec"),
        device=CONFIG.device,
        weights_dir=weights_folder(),
    params:
        release=RELEASE_TABLE,
        codec=CODEC_SETTINGS,
        lpips=perceptual_identity(weights_folder() or None),
        upstream=PREPROCESSED_BY,
        code=code("validate_codec", "neuromf.codec.validate:validate_codec"),
    script:
        "../workflow_scripts/validate_codec.py"


rule codec_gate:
    input:
        f"{RELEASE_FOLDER}/evaluation/codec.json",
    output:
        report(
            CODEC_GATE,
            caption="../src/neuromf/paper/report/captions/codec_gate.rst",
            category="Codec",
        ),
    log:
        f"results/logs/codec_gate/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/codec_gate/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        gate=CONFIG.codec_gate.model_dump(mode="json"),
        settings=INTERVALS,
        lost=lambda wildcards: lost_note(Path(CODEC_GATE)),
        code=code("codec_gate", "neuromf.evaluation.codec_gate:check_codec"),
    script:
        "../workflow_scripts/codec_gate.py"
