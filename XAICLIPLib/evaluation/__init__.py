"""Evidence: is a saliency map true? Datasets with labels, metrics and their controls."""
