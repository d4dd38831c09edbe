"""What this machine has: devices, packages, files, temporary folders. Imports no other folder of the library."""
