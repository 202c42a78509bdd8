"""`python -m unistep`, and what `accelerate launch -m unistep` runs."""

from unistep.cli.main import main

main()
