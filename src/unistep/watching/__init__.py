"""Runs read from their folders while they train or afterwards, without PyTorch: lists of them, and pages about them."""
