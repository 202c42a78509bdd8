"""From a model to images: sampling plans, seeds and labels per image, grids."""
