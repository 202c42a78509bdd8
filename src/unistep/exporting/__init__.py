"""Models as programs for other runtimes: written, compared with PyTorch, and described in the file."""
