"""Edits with any consistency function, without training: inverse problems, noisy inputs, interpolation."""
