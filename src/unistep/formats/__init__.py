"""Readers and writers of checkpoints: model folders in diffusers' layout, the files of other projects."""
