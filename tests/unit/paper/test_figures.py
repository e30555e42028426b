import numpy as np
import pandas as pd
import pytest

from neuromf.paper import figures, style


def test_nfe_plot_has_runs_and_references_once_each(metrics):
    figure = figures.metric_against_nfe(metrics, "frechet_distance", "title", "unit", log_scale=True)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == sorted(
        ["real train vs real test", "codec reconstruction", "decoded noise", "meanflow", "rectified flow"]
    )
    style.as_svg(figure)


def test_figures_draw_with_missing_values_and_few_scans(metrics, scans):
    groups = {
        "real": scans["run"] == "real",
        "meanflow": (scans["run"] == "meanflow") & (scans["nfe"] == 1).fillna(False),
    }
    groups = {name: chosen.astype(bool) for name, chosen in groups.items()}
    drawn = [
        figures.metric_against_nfe(metrics, "kernel_distance", "title", "unit", log_scale=False),
        figures.tissue_distributions(scans, groups),
        figures.nearest_histogram(scans, groups),
        figures.nearest_histogram(scans, {"real": groups["real"] & (scans["split"] == "train")}),
        figures.distributions({"brain volume (ml)": [1400.0], "cut": [0.0] * 9}),
    ]
    for figure in drawn:
        assert style.as_svg(figure).startswith(b"<?xml")


@pytest.mark.parametrize("values", [[0.0] * 32, list(np.linspace(0, 1e-6, 32)), [0.5, *[0.0] * 31]])
def test_bars_of_values_that_are_all_alike_can_be_seen(values):
    (axis,) = figures.distributions({"share of the brain cut off": values}).axes
    low, high = axis.get_xlim()
    bars = [bar for bar in axis.patches if bar.get_height()]
    assert sum(bar.get_height() for bar in bars) == 32
    assert all(low <= bar.get_x() and bar.get_width() > 0.02 * (high - low) for bar in bars)


def test_training_curves_draw_nan_and_empty_tables():
    steps = np.arange(5)
    train = pd.DataFrame({"step": steps, "raw_fm": 1.0 / (steps + 1), "raw_mf": np.nan})
    val = pd.DataFrame({"step": [2, 2, 4, 4], "average": ["0.1", "online"] * 2, "raw_fm": [0.5, 0.6, 0.3, 0.4]})
    val = val.assign(raw_mf=np.nan, sample_distance=[0.2, 0.3, -0.01, 0.1])
    figure = figures.training_curves({"a": (train, val, "0.1"), "b": (train, val.iloc[:0], "0.1")})
    fm, mf, distance = figure.axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in fm.lines}
    assert drawn["a: average"] == [0.5, 0.3] and drawn["a: weights themselves"] == [0.6, 0.4]
    assert list(distance.lines[0].get_ydata()) == [0.2, -0.01] and fm.get_yscale() == "log"
    style.as_svg(figure)


def test_the_same_figure_gives_the_same_file(metrics):
    drawn = []
    for _ in range(2):
        with style.themed(style.DARK):
            drawn.append(
                style.as_svg(figures.metric_against_nfe(metrics, "frechet_distance", "t", "u", log_scale=True))
            )
    assert drawn[0] == drawn[1]


def test_runs_keep_their_colours_and_references_theirs():
    colours = style.run_colours(["a", "b"])
    assert colours["a"] != colours["b"] and colours["noise"] == style.NOISE_COLOUR
    assert style.run_label("rectified_flow") == "rectified flow" and style.run_label("noise") == "decoded noise"
