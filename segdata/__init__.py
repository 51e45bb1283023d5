"""Pictures and masks: what a data set on disk is (`layouts`), how its files are read, cropped, drawn and cached."""
