"""What a training step minimises: denoising (the teacher) and the consistency objective (its students)."""
