"""Edits of 1,000 MNIST test images without training, beside baselines and the teacher: PSNR and class accuracy.

    python benchmarks/editing.py --bf16                          measures all and prints the tables
    python benchmarks/editing.py --bf16 --write docs/editing.md  puts them there, between the markers
    python benchmarks/editing.py --bf16 --pictures docs/images   draws what has been measured, and does no more

The lower half is inpainted, patches of 4 x 4 pixels are resolved, noise of sigma 0.5 is taken away, and a Gaussian blur
of 2 pixels, whose result was rounded to 8 bits, is undone. Whatever the consistency model knows, every baseline knows;
the widths and strengths that baselines need are those that do best on these very images.

The model is class-conditional. In the main case the class is not given: `edit` guesses it, and these evaluations count.
The teacher has seen images without a class too and needs no guess. It samples with the noised known part put in place
before every ancestral step (as RePaint, Lugmayr et al. 2022, without resampling), in ten times the evaluations.

What is done is kept in --output by parts of --part images: an interrupted run goes on where it was. Ten times the
evaluations of an edit whose class is guessed are measured on the first --few images alone.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from marked_page import marked_page
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from unistep import edit
from unistep.core.noise import karras_sigmas
from unistep.core.pixels import psnr, to_float, to_uint8
from unistep.core.random import ImageRandom, image_seed
from unistep.data import open_dataset
from unistep.editing.methods.denoise import DenoisingEdit
from unistep.editing.model import edit_model
from unistep.editing.operators.deblurring import GaussianBlur
from unistep.editing.operators.mask import Inpainting, lower
from unistep.editing.operators.operator import EXACT, ROUNDED, Operator, agree, agree_in_range
from unistep.editing.operators.super_resolution import SuperResolution
from unistep.editing.run import make
from unistep.editing.tasks import TASKS
from unistep.formats.model import LoadedModel
from unistep.formats.model_folder.folder import load_model
from unistep.images.grid import save_png, to_pil
from unistep.metrics.features.mnist_classifier import load_mnist_classifier
from unistep.runtime.precision import set_precision
from unistep.samplers.ancestral import ancestral
from unistep.samplers.ode_step import euler_step, level
from unistep.workflows.models import EMBEDDED, EMBEDDED_TEACHER

SIGMA, BLUR, FACTOR = 0.5, 2.0, 4
NOISE, TEACHER_NOISE = 1, 2
GUESS = 80  # evaluations in which `edit` guesses a class of ten: 10, 5, 3 and 2 of them are tried, 4 each
SHOWN = 12
TITLED = ("inpaint", "upscale", "denoise", "deblur")

Rows = dict[str, tuple[int, Tensor]]  # by name: evaluations, and images uint8 [N, 1, 28, 28]


@dataclass(frozen=True)
class Case:
    """What is known of the images, and what needs no model."""

    task: str
    title: str
    operator: Operator | None
    y: Tensor
    known: Tensor
    baselines: Rows
    candidates: int = 8
    close: float = EXACT


class Made(NamedTuple):
    """Results of `edit` or of a method: candidates [N, K, C, H, W] and their classes [N, K]."""

    candidates: Tensor
    class_labels: Tensor | None
    evaluations: int
    guesses: int


def noise_of(stream: int, numbers: Sequence[int]) -> ImageRandom:
    return ImageRandom([image_seed(image_seed(stream, 0), i) for i in numbers])


# ------------------------------------------------------------------------------------------------ baselines


def best(make_one: Callable[[float], Tensor], values: Sequence[float], clean: Tensor) -> tuple[float, Tensor]:
    """The value whose images have the highest PSNR, and these images."""
    made = {value: to_uint8(make_one(value).clamp(-1, 1)) for value in values}
    value = max(made, key=lambda v: float(psnr(made[v], clean).mean()))
    return value, made[value]


def blurred(x: Tensor, sigma: float, border: Literal["reflect", "wrap"] = "reflect") -> Tensor:
    return GaussianBlur(sigma, 1e-9, border).A(x)


def linear(operator: Operator | None, y: Tensor, train: Tensor) -> Tensor:
    """The linear estimate of least squared error, fitted to training images and to this very measurement."""
    flat = train.flatten(1).double()
    mean, covariance = flat.mean(dim=0), torch.cov(flat.T)
    if operator is None:
        rows, noise = torch.eye(784, dtype=torch.float64), SIGMA**2
    else:
        rows, noise = operator.A(torch.eye(784).view(-1, 1, 28, 28)).flatten(1).double().T, 1e-3
    inner = rows @ covariance @ rows.T + noise * torch.eye(len(rows), dtype=torch.float64)
    gain = torch.linalg.solve(inner, rows @ covariance).T
    return (mean + (y.flatten(1).double() - rows @ mean) @ gain.T).view(-1, 1, 28, 28).float()


def wiener(y: Tensor, train: Tensor, blur: float | None, noise: float) -> Tensor:
    """Wiener's filter for a blur and white noise, with the mean spectrum of training images about their mean.

    At their borders images are reflected if they were blurred, as they are by the blur.
    """
    height, width = y.shape[2:]
    if blur is not None:
        y, train = mirrored(y), mirrored(train)
    size = (y.shape[2], y.shape[3])
    mean, kernel = train.mean(dim=0, keepdim=True), torch.zeros(1, 1, *size)
    kernel[..., 0, 0] = 1
    k = torch.fft.rfft2(kernel if blur is None else blurred(kernel, blur, "wrap")).real
    spectrum = torch.fft.rfft2(train - mean).abs().square().mean(dim=0, keepdim=True) / train[0].numel()
    gain = k * spectrum / (k**2 * spectrum + noise**2)
    blurred_mean = mean if blur is None else blurred(mean, blur, "wrap")
    made = torch.fft.irfft2(torch.fft.rfft2(y - blurred_mean) * gain, s=size) + mean
    return made[:, :, :height, :width]


def mirrored(x: Tensor) -> Tensor:
    x = torch.cat([x, x.flip(2)], dim=2)
    return torch.cat([x, x.flip(3)], dim=3)


def cases(clean: Tensor, train: Tensor) -> list[Case]:
    x, nothing = to_float(clean), lambda images: (0, to_uint8(images.clamp(-1, 1)))
    mask = lower((28, 28))
    inpainting, patches = Inpainting(mask), SuperResolution(FACTOR)
    deblurring = GaussianBlur(BLUR)
    known = mask.float()
    fill = (x * known).sum((1, 2, 3), keepdim=True) / known.sum()
    mean = train.mean(0, keepdim=True)
    y = inpainting.A(x)
    found = [
        Case(
            "inpaint",
            "Inpainting the lower half",
            inpainting,
            y,
            to_uint8(x * known - (1 - known)),
            {
                "mean of the known pixels": nothing(x * known + (1 - known) * fill),
                "mean of the training images": nothing(x * known + (1 - known) * mean),
                "linear regression": nothing(linear(inpainting, y, train)),
            },
        )
    ]
    y = patches.A(x)
    bicubic = functional.interpolate(y, scale_factor=FACTOR, mode="bicubic", align_corners=False)
    found.append(
        Case(
            "upscale",
            f"Super-resolution x{FACTOR}",
            patches,
            y,
            to_uint8(patches.A_pinv(y)),
            {
                "every mean over its patch": nothing(patches.A_pinv(y)),
                "bicubic": nothing(bicubic),
                "linear regression": nothing(linear(patches, y, train)),
            },
        )
    )
    y = x + SIGMA * noise_of(NOISE, range(len(x))).randn(1, 28, 28)
    width, images = best(lambda s: blurred(y, s), [0.4 + 0.05 * i for i in range(15)], clean)
    found.append(
        Case(
            "denoise",
            f"Denoising at sigma {SIGMA}",
            None,
            y,
            to_uint8(y),
            {
                "noisy": nothing(y),
                f"Gaussian blur of {width:.2f} pixels": (0, images),
                "Wiener": nothing(wiener(y, train, None, SIGMA)),
                "linear regression": nothing(linear(None, y, train)),
            },
            candidates=1,  # of one step, which draws nothing
        )
    )
    eight = to_uint8(blurred(x, BLUR))
    y = to_float(eight)
    band = deblurring.A_pinv(y)
    found.append(
        Case(
            "deblur",
            f"Deblurring, {BLUR:g} pixels",
            deblurring,
            y,
            eight,
            {
                "blurred": nothing(y),
                "Wiener": nothing(wiener(y, train, BLUR, 2 / 255 / 12**0.5)),
                "no model, only range and agreement": nothing(agree_in_range(deblurring, band, y, ROUNDED)),
            },
            candidates=4,
            close=ROUNDED,
        )
    )
    return found


# ------------------------------------------------------------------------------------------------ models


def edited(model: LoadedModel, case: Case, part: range, labels: list[int] | None, candidates: int) -> Made:
    y, seeds = case.y[part.start : part.stop], list(part)
    if case.operator is not None:
        y = to_uint8(y) if case.close == ROUNDED else y
        made = edit(
            model,
            None,
            case.operator,
            measurement=y,
            seeds=seeds,
            class_labels=labels,
            candidates=candidates,
            progress=False,
        )
        return Made(made.candidates, made.class_labels, made.evaluations, made.guesses)
    i = model.info
    noisy = DenoisingEdit(
        y, torch.full((len(y),), SIGMA), TASKS["denoise"].default.steps, i.sigma_min, i.sigma_max, i.rho
    )
    made = make(edit_model(model), noisy, seeds=seeds, class_labels=labels, candidates=candidates)
    return Made(made.images, made.class_labels, made.evaluations, made.guesses)


def by_edit(model: LoadedModel, case: Case, part: range, labels: list[int] | None) -> Rows:
    """One result, and of several the one that fits best and their mean; with no labels they are guessed."""
    known = "class guessed" if labels is None else "class given"
    one = edited(model, case, part, labels, 1)
    rows: Rows = {f"{known}, one result": (one.evaluations + one.guesses, one.candidates[:, 0])}
    if case.candidates == 1:
        return rows
    assert one.class_labels is not None
    many = edited(model, case, part, one.class_labels[:, 0].tolist(), case.candidates)
    nfe = many.evaluations + one.guesses
    rows[f"{known}, best fit of {case.candidates}"] = (nfe, many.candidates[:, 0])
    rows[f"{known}, mean of {case.candidates}"] = (nfe, many.candidates.float().mean(dim=1).round().to(torch.uint8))
    return rows


def by_teacher(model: LoadedModel, case: Case, part: range, labels: list[int] | None, steps: int) -> Rows:
    """The ancestral sampler with the known part replaced by the measurement, noised, before every step."""
    y, i = case.y[part.start : part.stop], model.info
    assert i.null_label is not None
    given = torch.full((len(y),), i.null_label) if labels is None else torch.tensor(labels)
    random = noise_of(TEACHER_NOISE, part)
    name = f"teacher, {'no class' if labels is None else 'class given'}"

    def denoiser(x_t: Tensor, sigma: Tensor, labels: Tensor | None = None, /) -> Tensor:
        return model.denoiser(x_t, sigma, labels).clamp(-1, 1)

    def noise(like: Tensor) -> Tensor:
        return random.randn(*like.shape[1:])

    if case.operator is None:
        if steps == 1:
            return {f"{name}, mean estimate": (1, to_uint8(denoiser(y, level(SIGMA, y), given)))}
        x = ancestral(denoiser, y / SIGMA, steps, given, noise=noise, sigma_max=SIGMA, sigma_min=i.sigma_min)
        return {f"{name}, sampled": (steps, to_uint8(x))}
    known = case.operator.A_pinv(y)
    sigmas = [*karras_sigmas(steps, i.sigma_min, i.sigma_max, i.rho, dtype=torch.float64).tolist(), 0.0]
    x = noise(y.new_empty(len(y), 1, 28, 28)) * sigmas[0]
    for t, r in pairwise(sigmas):
        noised = known + t * noise(x)
        x = agree(case.operator, x, case.operator.A_pinv(case.operator.A(noised)))
        x = euler_step(denoiser, x, level(t, x), level(r**2 / t, x), given)
        if r > 0:
            x = x + noise(x) * (r * math.sqrt(1 - (r / t) ** 2))
    return {name: (steps, to_uint8(agree_in_range(case.operator, x, y, case.close)))}


# ------------------------------------------------------------------------------------------------ running


def kept(path: Path, settings: str, compute: Callable[[], Rows]) -> Rows:
    """What was computed with these settings before, or is now."""
    if path.exists():
        with np.load(path) as file:
            if str(file["settings"]) == settings:
                names = [str(n) for n in file["names"]]
                return {n: (int(file["nfe"][j]), torch.from_numpy(file[f"images{j}"])) for j, n in enumerate(names)}
    started = time.monotonic()
    rows = compute()
    print(f"{path.stem}: {time.monotonic() - started:.0f} s", flush=True)
    arrays: dict[str, Any] = {f"images{j}": images.numpy() for j, (_, images) in enumerate(rows.values())}
    temporary = path.with_name(f"{path.stem}.part.npz")
    np.savez_compressed(temporary, settings=settings, names=list(rows), nfe=[n for n, _ in rows.values()], **arrays)
    temporary.replace(path)
    return rows


def measured(case: Case, labels: Tensor, arguments: argparse.Namespace, models: list[LoadedModel]) -> Rows:
    """All rows of a case; those of fewer images are of the first part."""
    student, teacher = models
    steps = TASKS[case.task].default.steps + TASKS[case.task].default.settle
    known = case.operator is not None
    # Ten times what `edit` needs with a class that is guessed; denoising is measured at ten times its one step.
    tenfold = 10 * (steps + (GUESS if known else 0))
    jobs: dict[str, Callable[[range, list[int]], Rows]] = {
        "guessed": lambda part, _: by_edit(student, case, part, None),
        "given": lambda part, own: by_edit(student, case, part, own),
        "teacher-given": lambda part, own: by_teacher(teacher, case, part, own, 10 * steps),
        "teacher-none": lambda part, _: by_teacher(teacher, case, part, None, tenfold),
        "teacher-mean": lambda part, _: by_teacher(teacher, case, part, None, 1),
    }
    if known:
        del jobs["teacher-mean"]
    constants = f"{FACTOR} {BLUR} {SIGMA}"
    settings = f"{TASKS[case.task]} {TASKS[case.task].default} {arguments.bf16} {case.candidates} {constants}" + (
        f" {case.close}" if case.close != EXACT else ""
    )
    rows: Rows = {}
    for first in range(0, arguments.count, arguments.part):
        for name, job in jobs.items():
            part = range(first, min(first + arguments.part, arguments.count))
            if name == "teacher-none" and known:
                if first or not arguments.few:
                    continue
                part = range(min(arguments.few, part.stop))
            path = arguments.output / f"{case.task}-{name}-{part.start}-{part.stop}.npz"
            done = kept(path, settings, lambda job=job, part=part: job(part, labels[part.start : part.stop].tolist()))
            for row, (nfe, images) in done.items():
                rows[row] = (nfe, torch.cat([rows[row][1], images]) if row in rows else images)
    return rows


def table(case: Case, rows: Rows, clean: Tensor, labels: Tensor) -> str:
    """As Markdown."""
    classifier = load_mnist_classifier()
    lines = [
        f"### {case.title}",
        "",
        "| | evaluations | PSNR, dB | accuracy |",
        "|---|---|---|---|",
    ]

    def add(name: str, nfe: int, images: Tensor) -> None:
        count = len(images)
        decibels = float(psnr(images, clean[:count]).mean())
        accuracy = float((classifier.predict(images) == labels[:count]).double().mean())
        first = "" if count == len(clean) else f" (first {count})"
        lines.append(f"| {name}{first} | {nfe or ''} | {decibels:.2f} | {accuracy:.1%} |")

    for name, (nfe, images) in (case.baselines | rows).items():
        add(name, nfe, images)
        if len(images) < len(clean):
            like = next(n for n in rows if n.startswith("class guessed"))
            add(like, rows[like][0], rows[like][1][: len(images)])
    return "\n".join(lines)


def draw(case: Case, rows: Rows, clean: Tensor, path: Path) -> None:
    """A PNG: a row for each way, with its name, and a column for each of the first images."""
    shown = {"image": clean, "known": case.known} | {n: i for n, (_, i) in (case.baselines | rows).items()}
    size, left, font = 56, 330, ImageFont.load_default(size=15)
    sheet = Image.new("RGB", (left + SHOWN * size, len(shown) * size), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (name, images) in enumerate(shown.items()):
        pen.text((6, i * size + 18), name, fill="black", font=font)
        for j in range(SHOWN):
            picture = to_pil(images[j]).convert("RGB").resize((size - 2, size - 2), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + j * size, i * size))
    save_png(sheet.quantize(64), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/editing"))
    parser.add_argument("--only", nargs="+", choices=TITLED, default=list(TITLED), metavar="TASK")
    parser.add_argument("--count", type=int, default=1000, help="test images")
    parser.add_argument("--part", type=int, default=250, help="images that are measured at once")
    parser.add_argument("--few", type=int, default=250, help="images for the most expensive row; 0 leaves it out")
    parser.add_argument("--bf16", action="store_true", help="compute in bf16: faster, not the reference")
    parser.add_argument("--write", type=marked_page("editing"), help="Markdown page whose tables are replaced")
    parser.add_argument("--pictures", type=Path, help="folder for a PNG a task")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    test, train = open_dataset("mnist-test"), open_dataset("mnist")
    assert test.labels is not None
    clean, labels = test.images[: arguments.count], test.labels[: arguments.count]
    models = [load_model(EMBEDDED), load_model(EMBEDDED_TEACHER)]
    if arguments.bf16:
        for model in models:
            set_precision(model.denoiser.network, torch.bfloat16)
    texts = []
    with torch.no_grad():
        for case in cases(clean, to_float(train.images)):
            if case.task not in arguments.only:
                continue
            rows = measured(case, labels, arguments, models)
            texts.append(table(case, rows, clean, labels))
            print(f"\n{texts[-1]}\n", flush=True)
            if arguments.pictures:
                draw(case, rows, clean, arguments.pictures / f"edit-{case.task}.png")
    if arguments.write:
        arguments.write.write("\n\n".join(texts))


if __name__ == "__main__":
    main()
