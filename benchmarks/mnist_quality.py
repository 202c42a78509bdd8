"""Quality of MNIST models: class accuracy and Frechet distance of 10,000 samples, 1,000 a class.

    python benchmarks/mnist_quality.py                     the embedded model and its teacher
    python benchmarks/mnist_quality.py RUN                 a run's student and teacher
    python benchmarks/mnist_quality.py RUN --scan          which second noise level is best

Features and classes are those of the bundled MNIST classifier, trained apart from the models; the reference is the
60,000 training images. The distance depends on the number of samples: compare at equal counts only.
"""

import argparse
import time
from pathlib import Path

import torch

from unistep.data import open_dataset
from unistep.formats.model import LoadedModel
from unistep.formats.model_folder.folder import load_model
from unistep.generation.generate import generate
from unistep.generation.plan import Plan, consistency_plan, default_plan
from unistep.metrics.features.mnist_classifier import load_mnist_classifier
from unistep.metrics.mnist import evaluate_digits, mnist_reference
from unistep.runtime.precision import set_precision
from unistep.workflows.models import EMBEDDED, EMBEDDED_TEACHER


def sample(model: LoadedModel, plan: Plan, count: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Images, the classes asked for, and seconds an image."""
    labels = torch.arange(count) % 10
    started = time.perf_counter()
    images = torch.cat(list(generate(model.denoiser, plan, model.image_shape, range(count), labels=labels)))
    return images, labels, (time.perf_counter() - started) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="run directory; default: the embedded models")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--scan", action="store_true", help="try second timesteps instead")
    parser.add_argument("--skip-teacher", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="sample in bf16: faster, not the reference")
    arguments = parser.parse_args()
    student = load_model(arguments.run / "student" / "model" if arguments.run else EMBEDDED)
    classifier, reference = load_mnist_classifier(), mnist_reference()

    rows = [("1 step", student, default_plan(student.info, 1)), ("2 steps", student, default_plan(student.info, 2))]
    if arguments.scan:
        i = student.info
        grid = (i.num_train_timesteps, i.sigma_min, i.sigma_max, i.rho)
        rows = [(f"[0, {t}]", student, consistency_plan([0, t], *grid)) for t in range(8, 36, 3)]
    elif not arguments.skip_teacher:
        teacher = load_model(arguments.run / "teacher" / "model" if arguments.run else EMBEDDED_TEACHER)
        rows.append(("teacher, 18 Heun steps", teacher, default_plan(teacher.info)))

    if arguments.bf16:
        for model in {id(m): m for _, m, _ in rows}.values():
            set_precision(model.denoiser.network, torch.bfloat16)

    print("| samples | evaluations | accuracy | lowest class | Frechet distance | s per image |")
    print("|---|---|---|---|---|---|")
    for name, model, plan in rows:
        images, labels, seconds = sample(model, plan, arguments.count)
        q = evaluate_digits(images, labels, reference, classifier=classifier)
        lowest = min(q.per_class_accuracy)
        print(
            f"| {name} | {plan.nfe} | {q.accuracy:.2%} | {lowest:.1%} | {q.frechet_distance:.3f} | {seconds:.4f} |",
            flush=True,
        )
    if not arguments.scan:
        test = open_dataset("mnist-test")
        assert test.labels is not None
        q = evaluate_digits(test.images, test.labels, reference, classifier=classifier)
        lowest = min(q.per_class_accuracy)
        print(f"| 10,000 test images | | {q.accuracy:.2%} | {lowest:.1%} | {q.frechet_distance:.3f} | |")


if __name__ == "__main__":
    main()
