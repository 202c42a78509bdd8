"""Networks that turn images into features, on which metrics are computed."""
