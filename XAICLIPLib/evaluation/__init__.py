"""Whether a saliency map is true: metrics with their controls, datasets, experiments."""
