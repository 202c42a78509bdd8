"""Measures of sample quality: Frechet distance, precision and recall, inception score, MNIST digits."""
