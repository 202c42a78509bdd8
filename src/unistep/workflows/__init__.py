"""The one place that turns a config into objects: models to sample from, networks to train, and whole runs."""
