"""The bundle: where everything in it is, how it is written, read and verified."""
