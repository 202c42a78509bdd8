"""Losses of a training step: denoising (diffusion models) and the consistency objectives (their students)."""
