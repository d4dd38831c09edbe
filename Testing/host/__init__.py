"""A stand-in for 3D Slicer, for tests: real MRML (slicer-core), real Qt (PySide6), PythonQt's rules."""
