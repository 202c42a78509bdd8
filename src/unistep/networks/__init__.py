"""Backbones, one a file: networks that know nothing of diffusion, only `(x, c_noise, class_labels) -> x`."""
