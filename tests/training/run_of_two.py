"""Two processes that train a recipe in parts for a moment: run_of_two.py RECIPE FOLDER."""

import sys

from several import several

import unistep


def train(recipe: str, folder: str) -> None:
    unistep.train(recipe, output=folder, engine="fsdp", max_minutes=0.001, progress=False)


if __name__ == "__main__":
    several(2, train, *sys.argv[1:])
