# Evaluation: the real scans once, each folder of samples, decoded noise, and one table of it all.

from neuromf.evaluation.extractors.published import require_weights

require_weights(CONFIG.evaluate.extractors, Path(weights_folder()) if weights_folder() else None)
EVALUATION = f"{RELEASE_FOLDER}/evaluation"
MORPHOMETRY = {"segmenters", "segmented"}
EVALUATION_SETTINGS = CONFIG.evaluate.model_dump(mode="json", exclude=MORPHOMETRY)
MORPHOMETRY_SETTINGS = INTERVALS | CONFIG.evaluate.model_dump(mode="json", include=MORPHOMETRY)
SAMPLE_PART = "{run}_seed-{seed}_nfe-{nfe}.json"
SAMPLE_PARTS = [SAMPLE_PART.format(run=run, seed=seed, nfe=nfe) for run, seed, nfe in sample_sets()]
PARTS = [f"{EVALUATION}/parts/{name}" for name in ("reference.json", "noise.json", *SAMPLE_PARTS)]
REGIONS = [f"{EVALUATION}/morphometry/{name}" for name in ("reference.json", *SAMPLE_PARTS)]


rule evaluate_reference:
    input:
        manifests=released(CONFORMED, "evaluate_reference", PREPROCESSED_BY),
        codec_validation=f"{EVALUATION}/codec.json",
        codec=trained_codec,
    output:
        part=f"{EVALUATION}/parts/reference.json",
        reference=f"{EVALUATION}/reference.safetensors",
        reconstructions=directory(f"{EVALUATION}/reconstructions"),
    log:
        f"results/logs/evaluate_reference/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/evaluate_reference/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: 1
    resources:
        **EVALUATION_JOB,
        stamp=stamp("evaluate_reference"),
        device=CONFIG.device,
        weights_dir=weights_folder(),
        cache=f"{EVALUATION}/cache",
    params:
        release=RELEASE_TABLE,
        settings=EVALUATION_SETTINGS,
        n=CONFIG.sample.n,
        codec=CODEC_SETTINGS,
        upstream=PREPROCESSED_BY,
        code=code("evaluate_reference", "neuromf.evaluation.evaluate:evaluate_reference"),
    script:
        "../workflow_scripts/evaluate_reference.py"


rule evaluate_samples:
    input:
        participants=f"{SAMPLES}/participants.tsv",
        timing=f"{SAMPLES}/sample_timing.json",
        reference=f"{EVALUATION}/reference.safetensors",
        codec=trained_codec,
    output:
        f"{EVALUATION}/parts/{SAMPLE_PART}",
    log:
        f"results/logs/evaluate_samples/{CONFIG.release}-{{run}}-{{seed}}-{{nfe}}.log",
    benchmark:
        f"results/benchmarks/evaluate_samples/{CONFIG.release}-{{run}}-{{seed}}-{{nfe}}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: 1
    resources:
        **EVALUATION_JOB,
        device=CONFIG.device,
        weights_dir=weights_folder(),
        cache=f"{EVALUATION}/cache",
    params:
        release=RELEASE_TABLE,
        settings=EVALUATION_SETTINGS,
        codec=CODEC_SETTINGS,
        code=code("evaluate_samples", "neuromf.evaluation.evaluate:evaluate_samples"),
    script:
        "../workflow_scripts/evaluate_samples.py"


rule evaluate_noise:
    input:
        reference=f"{EVALUATION}/reference.safetensors",
        statistics=f"{RELEASE_FOLDER}/latent_statistics.json",
        codec=trained_codec,
    output:
        f"{EVALUATION}/parts/noise.json",
    log:
        f"results/logs/evaluate_noise/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/evaluate_noise/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: 1
    resources:
        **EVALUATION_JOB,
        device=CONFIG.device,
        weights_dir=weights_folder(),
        cache=f"{EVALUATION}/cache",
    params:
        release=RELEASE_TABLE,
        settings=EVALUATION_SETTINGS,
        n=CONFIG.sample.n,
        seed=CONFIG.sample.seed,
        shape=CONFIG.preprocess.conform.shape,
        codec=CODEC_SETTINGS,
        code=code("evaluate_noise", "neuromf.evaluation.evaluate:evaluate_noise"),
    script:
        "../workflow_scripts/evaluate_noise.py"


rule morphometry_reference:
    input:
        manifests=released(CONFORMED, "morphometry_reference", PREPROCESSED_BY),
        nearest=f"{EVALUATION}/parts/reference.json",
    output:
        f"{EVALUATION}/morphometry/reference.json",
    log:
        f"results/logs/morphometry_reference/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/morphometry_reference/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: 1
    resources:
        **NETWORK_JOB,
        stamp=stamp("morphometry_reference"),
        device=CONFIG.device,
        weights_dir=weights_folder(),
        cache=f"{EVALUATION}/cache/segmentations",
    params:
        release=RELEASE_TABLE,
        settings=MORPHOMETRY_SETTINGS,
        n=CONFIG.sample.n,
        upstream=PREPROCESSED_BY,
        code=code("morphometry_reference", "neuromf.evaluation.morphometry.evaluate:evaluate_real_regions"),
    script:
        "../workflow_scripts/morphometry_reference.py"


# After the real scans, whose segmentations it finds in the cache.
rule morphometry_samples:
    input:
        participants=f"{SAMPLES}/participants.tsv",
        manifests=released(CONFORMED, "morphometry_samples", PREPROCESSED_BY),
        nearest=f"{EVALUATION}/parts/{SAMPLE_PART}",
        reference=f"{EVALUATION}/morphometry/reference.json",
    output:
        f"{EVALUATION}/morphometry/{SAMPLE_PART}",
    log:
        f"results/logs/morphometry_samples/{CONFIG.release}-{{run}}-{{seed}}-{{nfe}}.log",
    benchmark:
        f"results/benchmarks/morphometry_samples/{CONFIG.release}-{{run}}-{{seed}}-{{nfe}}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: 1
    resources:
        **NETWORK_JOB,
        stamp=lambda wildcards: stamp("morphometry_samples", wildcards),
        device=CONFIG.device,
        weights_dir=weights_folder(),
        cache=f"{EVALUATION}/cache/segmentations",
    params:
        release=RELEASE_TABLE,
        settings=MORPHOMETRY_SETTINGS,
        upstream=PREPROCESSED_BY,
        code=code("morphometry_samples", "neuromf.evaluation.morphometry.evaluate:evaluate_sample_regions"),
    script:
        "../workflow_scripts/morphometry_samples.py"


rule metrics:
    input:
        PARTS,
        REGIONS if CONFIG.evaluate.segmenters else [],
    output:
        metrics=f"{EVALUATION}/metrics.parquet",
        readable=report(
            f"{EVALUATION}/metrics.json",
            caption="../src/neuromf/paper/report/captions/metrics.rst",
            category="Evaluation",
        ),
        scans=f"{EVALUATION}/scans.parquet",
    log:
        f"results/logs/metrics/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/metrics/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        code=code("metrics", "neuromf.evaluation.evaluate:merge_metrics"),
    script:
        "../workflow_scripts/metrics.py"


rule spectra:
    input:
        PARTS,
    output:
        f"{EVALUATION}/spectra.parquet",
    log:
        f"results/logs/spectra/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/spectra/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        code=code("spectra", "neuromf.evaluation.spectrum:merge_spectra"),
    script:
        "../workflow_scripts/spectra.py"


rule differences:
    input:
        scans=f"{EVALUATION}/scans.parquet",
        reference=f"{EVALUATION}/reference.safetensors",
    output:
        f"{EVALUATION}/differences.parquet",
    log:
        f"results/logs/differences/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/differences/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    threads: 1
    resources:
        **CPU_JOB,
        cache=f"{EVALUATION}/cache",
    params:
        settings=INTERVALS | {"compared": CONFIG.evaluate.compared},
        code=code("differences", "neuromf.evaluation.differences:compare_sample_sets"),
    script:
        "../workflow_scripts/differences.py"


rule seed_tests:
    input:
        f"{EVALUATION}/metrics.parquet",
    output:
        f"{EVALUATION}/seed_tests.parquet",
    log:
        f"results/logs/seed_tests/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/seed_tests/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        confidence=CONFIG.evaluate.confidence,
        code=code("seed_tests", "neuromf.evaluation.seeds:compare_seeds"),
    script:
        "../workflow_scripts/seed_tests.py"
