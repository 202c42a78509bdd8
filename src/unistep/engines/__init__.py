"""Programs of other runtimes, and the denoisers that they are."""
