# Experiments of the method itself, without scans: `snakemake torus`.

TORUS = "results/experiments/torus"


rule torus:
    input:
        f"{TORUS}/torus.png",


rule torus_experiment:
    output:
        rows=f"{TORUS}/torus.json",
        losses=f"{TORUS}/losses.parquet",
        samples=f"{TORUS}/samples.parquet",
    log:
        "results/logs/torus_experiment.log",
    benchmark:
        "results/benchmarks/torus_experiment.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        updates=5000,
        seed=0,
        code=code("torus_experiment", "neuromf.training.toy:torus_experiment"),
    script:
        "../workflow_scripts/torus_experiment.py"


rule torus_figure:
    input:
        rows=f"{TORUS}/torus.json",
        losses=f"{TORUS}/losses.parquet",
        samples=f"{TORUS}/samples.parquet",
    output:
        report(
            f"{TORUS}/torus.png",
            caption="../src/neuromf/paper/report/captions/torus.rst",
            category="Experiments",
        ),
    log:
        "results/logs/torus_figure.log",
    benchmark:
        "results/benchmarks/torus_figure.tsv"
    conda:
        "../envs/neuromf.yaml"
    resources:
        **CPU_JOB,
    params:
        code=code("torus_figure", "neuromf.paper.torus:draw_torus"),
    script:
        "../workflow_scripts/torus_figure.py"
