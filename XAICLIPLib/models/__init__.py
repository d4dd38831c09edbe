"""The catalogue of models: what there is, how it comes onto this machine, and how it is loaded."""
