"""A page about runs: one HTML file without scripts, which asks for nothing from outside."""
