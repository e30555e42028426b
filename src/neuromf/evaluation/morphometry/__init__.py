"""Morphometry: regional volumes by exchangeable segmenters, and how those of generated and real brains compare."""

from neuromf.evaluation.morphometry.compare import bootstrap_volumes, compare_volume_draws, compare_volumes
from neuromf.evaluation.morphometry.tissues import TISSUES, brain_mask, tissue_volumes

__all__ = ["TISSUES", "bootstrap_volumes", "brain_mask", "compare_volume_draws", "compare_volumes", "tissue_volumes"]
