"""The training loop: method-blind, resumable at any step, on any number of processes."""
