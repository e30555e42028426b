"""The published setting without its weights stops at once and says what to fetch."""

from builders import Project


def test_methodology_asks_for_the_published_weights(tmp_path, bids):
    project = Project(tmp_path)
    assert project.neuromf("index", str(bids), "--cohort", "study", "--skull-stripped").returncode == 0
    created = project.neuromf("release", "create", "first", "--cohort", "study", "--fractions", "0.5", "0.25", "0.25")
    assert created.returncode == 0, created.stderr
    project.configure(preset="methodology", release="first")
    done = project.snakemake("--dry-run", check=False)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "autoencoder_v1.pt" in said
    assert "weights_dir" in said
