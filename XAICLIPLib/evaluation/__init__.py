"""Whether to believe a map: metrics, their controls, and the flags that tell a reader. Imports explainers."""
