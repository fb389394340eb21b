"""Running the embedded server: supervision, what dead servers left, ends in order."""
