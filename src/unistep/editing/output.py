"""Results written while an edit runs; every place is checked before anything is made."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unistep.checks import check_file, user_path
from unistep.editing.places import check_images_place, output_places, ranked_places
from unistep.editing.result import EditedImage, EditResult
from unistep.editing.tasks.paths import PathTask
from unistep.editing.tasks.task import EditTask, ImageTask
from unistep.errors import UserError
from unistep.images.animation import check_animation
from unistep.images.read import ImageInput
from unistep.text import shown

_ANIMATIONS = (".png", ".gif", ".mp4")


class ResultWriter:
    """Writes the results of an edit, each as soon as it is done.

    Args:
        task: task that makes the results.
        images: inputs.
        output: file or folder for the results; None writes none.
        sheet: .png for the sheet; None writes none.

    Raises:
        UserError: a place that cannot be written to or is of another kind, an input that would be overwritten, two
            results of one name.
    """

    def __init__(
        self,
        task: EditTask,
        images: Sequence[ImageInput],
        output: str | os.PathLike[str] | None,
        sheet: str | os.PathLike[str] | None,
    ) -> None:
        self.written = 0
        self.places: list[Path] = []
        for field, value in (("output", output), ("sheet", sheet)):
            if value is not None and not str(value).strip():
                raise UserError("is empty", "give a name", field=field)
        self.output = None if output is None else user_path(output)
        self.sheet = None if sheet is None else user_path(sheet)
        check_file("sheet", sheet, (".png",))
        if not isinstance(task, ImageTask):
            self._check_animation(task)
        elif self.output is not None:
            check_images_place("output", self.output, str(output))
            self.places = output_places(task.names(images), self.output)
            self._check_inputs_stay(images, task.candidates)
            self._check_sheet_apart(task.candidates)

    def write(self, number: int, image: EditedImage) -> None:
        """Writes the results of input `number`.

        Raises:
            UserError: they cannot be written.
        """
        if self.output is not None:
            image.save(self.places[number])
            self.written += 1

    def finish(self, result: EditResult) -> EditResult:
        """Writes animation and sheet; returns the result with its places.

        Raises:
            UserError: they cannot be written.
        """
        if result.frames is not None and self.output is not None:
            result.save(self.output)
        if self.sheet is not None:
            result.save_sheet(self.sheet)
        return replace(result, output=self.output, sheet=self.sheet)

    def _check_animation(self, task: EditTask) -> None:
        if self.sheet is not None:
            raise UserError(
                "`sheet` is for images, not for the frames of a path", "give `output` x.png, a grid of them"
            )
        check_file("output", self.output, _ANIMATIONS)
        if self.output is not None and self.output.suffix.lower() != ".png":
            check_animation(self.output)
        elif self.output is not None and isinstance(task, PathTask) and task.fps is not None:
            raise UserError(f"`fps` is for animations, and {self.output} is a grid of the frames", "leave it out")

    def _check_sheet_apart(self, candidates: int) -> None:
        sheet = None if self.sheet is None else self.sheet.resolve()
        if sheet in [p.resolve() for best in self.places for p in ranked_places(best, candidates)]:
            raise UserError(f"`sheet` {self.sheet} would overwrite a result", "give another")

    def _check_inputs_stay(self, images: Sequence[ImageInput], candidates: int) -> None:
        sources = [image.source for image in images if isinstance(image.source, str | os.PathLike)]
        inputs = {user_path(source).resolve() for source in sources}
        for place in (p for best in self.places for p in ranked_places(best, candidates)):
            if place.resolve() in inputs:
                raise UserError(f"`output` {self.output} would overwrite the input {shown(place)}", "give another")
