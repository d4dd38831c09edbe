"""Whether to believe a map: metrics, control maps to compare with, and reliability flags. Imports explainers."""
