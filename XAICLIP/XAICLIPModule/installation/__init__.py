"""Which Python computes, and how the packages that it needs get there."""
