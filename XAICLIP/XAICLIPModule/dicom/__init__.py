"""Scans that Slicer loaded from its DICOM database, and results that go back there."""
