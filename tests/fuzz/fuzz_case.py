"""One malformed input: a command line, the files that it names, and how they are laid out in a folder."""

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Make = Callable[[Path], None]
Content = bytes | str | Make


@dataclass(frozen=True)
class Case:
    """A malformed input.

    Args:
        words: words after `unistep`.
        files: content of the files that they name, by their paths; a function makes what is no plain file.
        environment: environment variables.
        note: mutation in a few words, for the report of a failure.
    """

    words: list[str]
    files: Mapping[str, Content] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def lay_out(self, folder: Path) -> None:
        """Writes the files."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)


Draw = Callable[[random.Random, "Good"], Case]


@dataclass(frozen=True)
class Good:
    """Valid inputs, which the cases damage.

    Args:
        folder: folder of the files below.
        model: model folder, for grey images of 28 pixels and ten classes.
        plain: model folder of a plain U-Net.
        pt: OpenAI file.
        pkl: EDM file.
        run: run directory of two stages that has ended.
        images: folder of grey images of 28 pixels in two classes.
        npz: images and labels.
        statistics: .npz of statistics.
        hub: address of the hostile hub.
    """

    folder: Path
    model: Path
    plain: Path
    pt: Path
    pkl: Path
    run: Path
    images: Path
    npz: Path
    statistics: Path
    hub: str

    def copy_of(self, path: Path, changed: Mapping[str, Content | None]) -> dict[str, Content]:
        """The files of a folder by their paths below it, with others in place of some; None leaves one out."""
        found: dict[str, Content] = {}
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if file.is_file() and name not in changed:
                found[name] = linked(file)
        return found | {name: content for name, content in changed.items() if content is not None}


def linked(file: Path) -> Make:
    """The file itself, which is only read."""

    def make(path: Path) -> None:
        path.symlink_to(file)

    return make


def below(folder: str, files: Mapping[str, Content]) -> dict[str, Content]:
    """The files in a folder."""
    return {f"{folder}/{name}": content for name, content in files.items()}


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def damaged(r: random.Random, content: bytes, head: int = 0) -> tuple[str, bytes]:
    """A damage that no reader can pass over, in words, and the content with it: cut short, or another head."""
    choice = r.randrange(5)
    if choice == 0:
        return "empty", b""
    if choice == 1:
        return "cut", content[: r.randrange(1, max(2, len(content) * 3 // 4))]
    if choice == 2:
        return "noise", r.randbytes(r.randrange(1, 4000))
    if choice == 3:
        return "zeros", bytes(len(content))
    return "another head", r.randbytes(max(head, 16)) + content[max(head, 16) :]


def model_command(r: random.Random, model: str) -> list[str]:
    """A command that opens a model."""
    return r.choice(
        [
            ["sample", model, "--num-images", "1"],
            ["sample", model, "--num-images", "2", "--output", "out.npz"],
            ["inspect", model],
            ["inspect", model, "--json"],
            ["convert", model, "converted"],
            ["convert", model, "converted.pt"],
            ["evaluate", model, "--reference", "mnist-test", "--num-images", "16"],
            ["edit", "vary", "--model", model, "--input", "good.png", "--output", "edited.png"],
            ["search", model, "--reference", "mnist-test", "--num-images", "20"],
            ["train", "mnist-ect", "--teacher", model],
            ["train", "mnist-cd", "--teacher", model, "--output", "run"],
        ]
    )


def data_command(r: random.Random, data: str) -> list[str]:
    """A command that reads images or labels."""
    return r.choice(
        [
            ["data", "inspect", data],
            ["train", "mnist-quick", "--data", data],
            ["train", "mnist-quick", "--data.source", data, "--output", "run"],
            ["evaluate", data, "--reference", "mnist-test"],
            ["evaluate", "mnist-test", "--reference", data, "--num-images", "32"],
            ["search", "--reference", data, "--num-images", "20"],
            ["edit", "vary", "--input", data, "--output", "edited"],
        ]
    )
