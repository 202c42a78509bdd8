"""From noise to images: samplers that see a `Denoiser` and nothing of the network behind it.

They leave gradients on: call them under `torch.no_grad()` unless you want to differentiate through the sampling.
"""
