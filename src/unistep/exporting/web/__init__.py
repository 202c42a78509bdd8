"""A model as a folder of static files: the page of `unistep serve`, which computes in the browser."""
