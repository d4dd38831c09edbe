"""Words to region: where in the volume an image-text model sees the named structure."""
