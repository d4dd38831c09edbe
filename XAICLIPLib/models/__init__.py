"""The catalogue: which models there are, how they get here and load. Imports localization and segmentation."""
