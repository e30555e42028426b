import numpy as np

from neuromf.evaluation.distances import METRICS, biased_by_few_scans, compare_rows
from neuromf.evaluation.features import Rows, one_row_each


def test_every_figure_has_a_value_and_too_few_scans_none(settings):
    random = np.random.default_rng(0)
    x, y = (Rows(random.normal(size=(40, 6)), np.full(10, 4)) for _ in range(2))
    found = compare_rows(x, y, settings)
    assert tuple(found) == METRICS and all(e.value is not None and e.n == 10 for e in found.values())
    few = compare_rows(one_row_each(np.zeros((1, 6))), y, settings)
    assert tuple(few) == METRICS and all(e.value is None and e.n == 1 for e in few.values())
    assert biased_by_few_scans(64, 64) and not biased_by_few_scans(65, 64)
