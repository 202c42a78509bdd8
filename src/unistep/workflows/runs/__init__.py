"""A training run from the inside: its folder, what its stages are made of, and how they train."""
