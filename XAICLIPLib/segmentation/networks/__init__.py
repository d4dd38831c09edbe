"""One file for each kind of network on disk, and `formats`, which tells them apart."""
