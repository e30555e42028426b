"""Evaluation of generated volumes against real ones: it knows volumes and features, never the model that made them."""
