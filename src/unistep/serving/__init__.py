"""A server of models over HTTP: batching, the shapes of known APIs, and a page to try a model on."""
