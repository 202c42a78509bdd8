"""The description in an exported file: its key and its version."""

KEY = "unistep"
"""Key of the description in the metadata of a file."""

FORMAT = 1
"""Version of the description."""
