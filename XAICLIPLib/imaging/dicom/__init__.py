"""Series of DICOM images, also those in folders and zip files that hold more."""
