"""unistep: train, distill, sample and edit with consistency models, which make an image in one network evaluation."""
