# Pictures of their own, and the report: one page, and the picture of the README.


rule codec_picture:
    input:
        validation=f"{EVALUATION}/codec.json",
        worst=f"{EVALUATION}/codec_worst",
    output:
        report(
            f"{RELEASE_FOLDER}/paper/codec_worst.png",
            caption="../src/neuromf/paper/report/captions/codec_worst.rst",
            category="Codec",
        ),
    log:
        f"results/logs/codec_picture/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/codec_picture/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        code=code("codec_picture", "neuromf.paper.codec:draw_worst"),
    script:
        "../workflow_scripts/codec_picture.py"


rule latent_picture:
    input:
        f"{EVALUATION}/latents.json",
    output:
        report(
            f"{RELEASE_FOLDER}/paper/latents.png",
            caption="../src/neuromf/paper/report/captions/latents.rst",
            category="Codec",
        ),
    log:
        f"results/logs/latent_picture/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/latent_picture/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        code=code("latent_picture", "neuromf.paper.latents:draw_latents"),
    script:
        "../workflow_scripts/latent_picture.py"


rule spectrum_picture:
    input:
        f"{EVALUATION}/spectra.parquet",
    output:
        report(
            f"{RELEASE_FOLDER}/paper/spectrum.png",
            caption="../src/neuromf/paper/report/captions/spectrum.rst",
            category="Evaluation",
        ),
    log:
        f"results/logs/spectrum_picture/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/spectrum_picture/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        k0=CONFIG.evaluate.spectrum_k0,
        code=code("spectrum_picture", "neuromf.paper.spectrum:draw_spectra"),
    script:
        "../workflow_scripts/spectrum_picture.py"


rule regions_picture:
    input:
        f"{EVALUATION}/metrics.parquet",
    output:
        report(
            f"{RELEASE_FOLDER}/paper/regions.png",
            caption="../src/neuromf/paper/report/captions/regions.rst",
            category="Evaluation",
        ),
    log:
        f"results/logs/regions_picture/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/regions_picture/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        code=code("regions_picture", "neuromf.paper.regions:draw_regions"),
    script:
        "../workflow_scripts/regions_picture.py"


rule copies_picture:
    input:
        manifests=released(CONFORMED, "copies_picture", PREPROCESSED_BY),
        scans=f"{EVALUATION}/scans.parquet",
        samples=[
            f"{RELEASE_FOLDER}/samples/{run}/seed-{seed}/nfe-{nfe}/participants.tsv"
            for run, seed, nfe in sample_sets()
        ],
    output:
        report(
            f"{RELEASE_FOLDER}/paper/copies.png",
            caption="../src/neuromf/paper/report/captions/copies.rst",
            category="Evaluation",
        ),
    log:
        f"results/logs/copies_picture/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/copies_picture/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
        stamp=stamp("copies_picture"),
    params:
        release=RELEASE_TABLE,
        sample_sets=sample_sets(),
        upstream=PREPROCESSED_BY,
        code=code("copies_picture", "neuromf.paper.copies:draw_copies"),
    script:
        "../workflow_scripts/copies_picture.py"


rule run_tables:
    input:
        differences=f"{EVALUATION}/differences.parquet",
        seed_tests=f"{EVALUATION}/seed_tests.parquet",
    output:
        [
            f"{RELEASE_FOLDER}/paper/{table}.{kind}"
            for table in ("differences", "seeds", "seed_tests")
            for kind in ("csv", "tex")
        ],
    log:
        f"results/logs/run_tables/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/run_tables/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        code=code("run_tables", "neuromf.paper.runs:write_run_tables"),
    script:
        "../workflow_scripts/run_tables.py"


rule report:
    input:
        release=RELEASE_TABLE,
        manifests=[path for cohort in COHORTS for path in all_manifests(cohort)],
        metrics=f"{EVALUATION}/metrics.parquet",
        scans=f"{EVALUATION}/scans.parquet",
        reconstructions=f"{EVALUATION}/reconstructions",
        codec_gate=CODEC_GATE,
        codec_picture=f"{RELEASE_FOLDER}/paper/codec_worst.png",
        latents=f"{EVALUATION}/latents.json",
        spectra=f"{EVALUATION}/spectra.parquet",
        copies_picture=f"{RELEASE_FOLDER}/paper/copies.png",
        differences=f"{EVALUATION}/differences.parquet",
        seed_tests=f"{EVALUATION}/seed_tests.parquet",
        samples=[
            f"{RELEASE_FOLDER}/samples/{run}/seed-{seed}/nfe-{nfe}/{name}"
            for run, seed, nfe in sample_sets()
            for name in ("participants.tsv", "sample_timing.json")
        ],
        models=[f"{RELEASE_FOLDER}/runs/{run}/seed-{seed}/model.json" for run, seed in trained_models()],
    output:
        page=report(
            f"{RELEASE_FOLDER}/report/index.html",
            caption="../src/neuromf/paper/report/captions/report.rst",
            category="Report",
        ),
        picture=report(
            f"{RELEASE_FOLDER}/report/real_vs_generated.png",
            caption="../src/neuromf/paper/report/captions/picture.rst",
            category="Report",
        ),
        table=f"{RELEASE_FOLDER}/report/metrics.csv",
    log:
        f"results/logs/report/{CONFIG.release}.log",
    benchmark:
        f"results/benchmarks/report/{CONFIG.release}.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        config=configuration.deciding(CONFIG),
        cohorts=list(COHORTS),
        sample_sets=sample_sets(),
        trained_models=trained_models(),
        template=tables.file_sha256(PROJECT / "src/neuromf/paper/report/report.html"),
        code=code("report", "neuromf.paper.report.build:build_report"),
    script:
        "../workflow_scripts/report.py"
