"""What a MONAI bundle brings besides its network: what its metadata say, its licence, its code, its slices."""
