"""Words to region: where in a volume an image-text model sees the named structure. Imports imaging and system."""
