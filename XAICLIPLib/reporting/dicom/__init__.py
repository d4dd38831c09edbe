"""The objects in DICOM that an explanation is sent back as: one file for each kind. Needs highdicom."""
