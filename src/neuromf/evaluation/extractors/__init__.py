"""Feature extractors: a volume becomes rows of features that distances between sets are computed on."""
