"""NeuroMF: 3D brain MRI synthesis in one network evaluation."""

__version__ = "0.1.0"
