"""`unistep edit`, of images: reads all inputs, edits them, and writes results and sheet."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unistep.cli.edit import EditConfig, given_labels, given_levels
from unistep.cli.edit_given import Given
from unistep.cli.edit_known import KnownTasks
from unistep.cli.edit_noised import prepare_noised
from unistep.core.pixels import psnr
from unistep.editing.methods.measurement import Known, given_settle
from unistep.editing.methods.protocol import Method
from unistep.editing.operators.operator import EXACT, ROUNDED, Operator
from unistep.editing.run import EditResult, make
from unistep.editing.sheet import Row, save_edit_sheet
from unistep.editing.tasks import TASKS
from unistep.errors import UserError
from unistep.images.grid import save_png, to_pil
from unistep.images.read import ImageFile, cut_margin, list_images
from unistep.runtime.progress import progress_bar
from unistep.text import shown

if TYPE_CHECKING:
    from unistep.editing.model import EditModel

_CHUNK = 256  # inputs whose results are in memory at once
_MOST_NOTES = 5
_MOST_ROWS = 100  # of a sheet
# What is known, of the tasks where that is another picture than the one that was given.
_SHOWS_KNOWN = ("inpaint", "outpaint", "deblur", "sense")


def edit_images(task: str, model: "EditModel", inputs: list[str], degrade: bool, config: EditConfig) -> None:
    """The whole command, from the flags to the files.

    Raises:
        UserError: an input, a flag or an output that does not do; nothing is written then.
    """
    files = list_images(inputs)
    outputs = _outputs(files, config)
    labels = given_labels(config, len(files))
    method_of, given = _prepare(task, model, files, degrade, config)
    _say_notes([g.note for g in given])
    rows: list[Row] = []
    gains: list[tuple[float, float]] = []
    evaluations, guesses = 0, 0
    with progress_bar(len(files) * config.candidates) as on_done:
        done = 0
        for part in _parts(given):
            chosen = labels if labels is None or isinstance(labels, int) else [labels[i] for i in part]
            result = make(
                model,
                method_of([given[i] for i in part]),
                seeds=config.seed,
                class_labels=chosen,
                candidates=config.candidates,
                batch_size=config.batch_size,
                numbers=part,
                on_done=lambda n, done=done: on_done(done + n),
            )
            done += len(part) * config.candidates
            evaluations, guesses = result.evaluations, result.guesses
            for row, i in enumerate(part):
                known, after = _cut(result, row, given[i])
                whole = given[i].clean
                if whole is not None:
                    clean = cut_margin(whole, given[i].inside)
                    gains.append((float(psnr(after[:1], clean[None])), float(psnr(known[None], clean[None]))))
                _write(after, outputs[i])
                if config.sheet is not None and len(rows) < _MOST_ROWS:
                    rows.append(_row(task, given[i], known, after, result, row))
    if config.sheet is not None:
        _saving(lambda: save_edit_sheet(rows, Path(config.sheet or "")), config.sheet)
    _say(files, config, evaluations, guesses, gains)


def _prepare(
    task: str, model: "EditModel", files: Sequence[ImageFile], degrade: bool, config: EditConfig
) -> tuple[Callable[[list[Given]], Method], list[Given]]:
    """How results are made of inputs, and the inputs."""
    levels = given_levels(model, config)
    if TASKS[task].kind == "known":
        quiet = given_settle(config.settle, 0 if levels else TASKS[task].settle, model.info)
        levels = levels or TASKS[task].levels(config.steps, rho=model.info.rho)
        tasks = KnownTasks(task, model, config, degrade)
        given = [tasks.read(file) for file in files]
        close = EXACT if degrade else ROUNDED  # what files hold is rounded

        def known(part: list[Given]) -> Known:
            operators, y = [_operator(g) for g in part], [g.y for g in part]
            return Known(operators, y, levels, model.info.sigma_min, close, quiet)

        return known, given
    return prepare_noised(task, model, files, degrade, config, levels)


def _operator(given: Given) -> Operator:
    assert given.operator is not None
    return given.operator


def _parts(given: Sequence[Given]) -> Iterator[list[int]]:
    """Numbers of inputs to be made at once: of one size, and not too many."""
    by_size: dict[object, list[int]] = {}
    for i, one in enumerate(given):
        by_size.setdefault(one.size, []).append(i)
    for numbers in by_size.values():
        for start in range(0, len(numbers), _CHUNK):
            yield numbers[start : start + _CHUNK]


def _outputs(files: Sequence[ImageFile], config: EditConfig) -> list[Path | None]:
    """Where the best result of every input goes.

    Raises:
        UserError: two would go to one place, or one over an input.
    """
    if config.output is None:
        return [None] * len(files)
    output = Path(config.output)
    if output.suffix.lower() == ".png" and not output.is_dir():
        if len(files) > 1:
            raise UserError(f"--output {config.output} is one file for {len(files)} images; give a folder, or --sheet")
        places = [output]
    else:
        places = [output / f"{file.name}.png" for file in files]
    first: dict[Path, ImageFile] = {}
    for place, file in zip(places, files, strict=True):
        if place in first:
            raise UserError(
                f"{shown(first[place].path)} and {shown(file.path)} would both become {shown(place)}; rename one"
            )
        first[place] = file
    inputs = {file.path.resolve(): file.path for file in files}
    for place in (p for best in places for p in _ranked(best, config.candidates)):
        if place.resolve() in inputs:
            raise UserError(f"--output {config.output} would overwrite the input {shown(place)}; give another")
    return list(places)


def _ranked(best: Path, count: int) -> list[Path]:
    """OUT.png, OUT-2.png, ..."""
    return [best, *(best.with_name(f"{best.stem}-{i}.png") for i in range(2, count + 1))]


def _cut(result: EditResult, row: int, given: Given) -> tuple[Tensor, Tensor]:
    """What was known [C, h, w] and the results [K, C, h, w], without margins."""
    return cut_margin(result.measurement[row], given.inside), cut_margin(result.candidates[row], given.inside)


def _write(after: Tensor, best: Path | None) -> None:
    if best is None:
        return
    for image, place in zip(after, _ranked(best, len(after)), strict=True):
        _saving(lambda image=image, place=place: save_png(to_pil(image), place), str(place))


def _saving(save: Callable[[], object], name: str) -> None:
    try:
        save()
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror or error}; choose another --output") from None


def _row(task: str, given: Given, known: Tensor, after: Tensor, result: EditResult, row: int) -> Row:
    captions = [f"off by {float(apart):.3f}" for apart in result.disagreement[row]]
    if result.class_labels is not None:
        captions = [f"class {int(c)}, {text}" for c, text in zip(result.class_labels[row], captions, strict=True)]
    before, original = given.before, given.clean
    if original is not None:
        original = None if torch.equal(original, before) else cut_margin(original, given.inside)
    if before.shape[1:] == given.size[1:]:
        before = cut_margin(before, given.inside)
    mask = None if given.mask is None else cut_margin(given.mask, given.inside)
    return Row(original, before, known if task in _SHOWS_KNOWN else None, mask, list(after), captions)


def _say_notes(notes: Sequence[str]) -> None:
    said = [note for note in notes if note]
    for note in said[:_MOST_NOTES]:
        print(f"note: {note}", file=sys.stderr)
    if len(said) > _MOST_NOTES:
        print(f"note: and so on for {len(said) - _MOST_NOTES} more", file=sys.stderr)


def _say(
    files: Sequence[ImageFile],
    config: EditConfig,
    evaluations: int,
    guesses: int,
    gains: Sequence[tuple[float, float]],
) -> None:
    count = f"{len(files)} image{'s' * (len(files) > 1)}"
    each = f"{config.candidates} candidates each, " if config.candidates > 1 else ""
    guessed = f" and {guesses} to guess the class" if guesses else ""
    places = [p for p in (config.output, config.sheet) if p is not None]
    cost = f"{evaluations} evaluation{'s' * (evaluations > 1)} each{guessed}"
    print(f"{count}, {each}{cost}: {', '.join(shown(p) for p in places)}")
    if gains:
        after, before = (sum(g[i] for g in gains) / len(gains) for i in (0, 1))
        print(f"PSNR against the input: {after:.2f} dB; of what was known of it alone: {before:.2f} dB")
