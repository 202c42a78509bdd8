"""The routes of the server, one file an API that clients already speak."""
