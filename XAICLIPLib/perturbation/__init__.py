"""Which voxels change, how, and what the scores of the changes say about each voxel."""
