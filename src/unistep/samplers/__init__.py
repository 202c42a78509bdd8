"""Samplers: from noise to images, by a `Denoiser`, whatever network is behind it.

They record gradients: call them under `torch.no_grad()` unless the sampling is to be differentiated.
"""
