"""The search for the noise levels of an edit, with a model whose best ones are known, and as `edit` edits."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from unistep import edit
from unistep.core.pixels import to_float
from unistep.editing.levels import DefaultLevels
from unistep.editing.operators.mask import Inpainting, lower
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.formats.model_folder.folder import load_model
from unistep.metrics.features.info import FeatureInfo
from unistep.networks.adm import UNetConfig
from unistep.networks.lpips import LPIPS
from unistep.searching import edit_schedules as module
from unistep.searching.edit_schedules import TaskSearch, chosen_images, level_grid, measurement_method, task_settings
from unistep.searching.full_reference import FullReferenceMetric, Resources, open_full_reference
from unistep.searching.plot import save_curves
from unistep.searching.record import open_record
from unistep.searching.scores import FOUND, USUAL, listed

COUNT, BEST = 12, 2.0
INPAINT = DefaultLevels(sigma_first=20.0, sigma_last=0.3, steps=6)


class Known(nn.Module):
    """A consistency function whose images are grey, but for a mistake that grows with the distance from BEST."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.nothing = 0, nn.Parameter(torch.zeros(()))

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        self.calls += len(x)
        sigma = torch.exp(c_noise / 250)[:, None, None, None]
        c_skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
        c_out = 0.5 * (sigma - 0.002) / (sigma**2 + 0.25).sqrt()
        noisy = x * (sigma**2 + 0.25).sqrt()
        mistake = 0.9 * ((sigma.log() - math.log(BEST)).abs() / 6).clamp(max=1)
        own = 0.01 * torch.tanh((noisy[..., :1, :1] - noisy[..., :1, 1:2]) / sigma)
        return ((mistake + own).expand_as(noisy) - c_skip * noisy) / c_out


def psnr():
    return open_full_reference("psnr", Resources())


def lpips(vgg, heads):
    return open_full_reference("lpips", Resources(lpips_vgg=vgg, lpips_heads=heads))


def class_agreement(network):
    return open_full_reference("class", Resources(features=lambda: network))


def model_of(**info):
    info = ModelInfo(**info)
    return LoadedModel(precondition(Known(), info), info, UNetConfig(sample_size=4, in_channels=1), Path("known"))


def grey_below(count=2 * COUNT):
    """Images whose lower half is grey, as the model would have it."""
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[:, :, 2:] = 128
    return images


def search_of(folder, model=None, images=None, metric=None, task=INPAINT, seed=0, method_of=None, **options):
    model, images, metric = model or model_of(), grey_below() if images is None else images, metric or psnr()
    settings = task_settings(model, "inpaint", {}, images, metric, seed=seed, dtype=torch.float32)
    record = open_record(Path(folder) / "search.json", settings)
    method_of = method_of or measurement_method(Inpainting(lower((images.shape[2], images.shape[3]))), model)
    return TaskSearch(model, task, method_of, images, metric, record, seed=seed, **options)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search that has found one step and two, and all that it has told of its progress."""
    told = []
    search = search_of(tmp_path_factory.mktemp("searched"), on_progress=lambda *args: told.append(args))
    search.find(1)
    search.find(2)
    return search, told


# ------------------------------------------------------------------------------------------------------- what is found


def test_the_level_of_one_step_is_found(searched):
    """It is the first one, which a sampler would not move."""
    search, _ = searched
    found = search.found[0]
    (level,) = found.schedule
    assert level == min(level_grid(search.info), key=lambda s: abs(math.log(s / BEST)))
    best, usual = found.judged
    assert (best.names, usual.names, usual.schedule) == ((FOUND,), (USUAL,), (20.0,))
    assert best.searched > usual.searched and best.fresh.value > usual.fresh.value + 5
    assert usual.difference.value == pytest.approx(best.fresh.value - usual.fresh.value) and best.difference is None
    (curve,) = found.curves
    assert curve[level] == max(curve.values()) == best.searched and curve[20.0] == usual.searched
    assert found.unit == "sigmas" and len([s for s in search.record.scores if len(s) == 1]) < 15


def test_fewer_steps_are_where_more_start_and_the_tasks_own_is_never_better(searched):
    search, _ = searched
    one, two = search.found
    assert two.of(FOUND).searched >= two.of(USUAL).searched and two.of(USUAL).schedule == (20.0, 0.3)
    assert len(two.curves) == 2 and list(two.schedule) == sorted(two.schedule, reverse=True)
    assert any(set(one.schedule) < set(s) for s in search.record.scores if len(s) == 2)
    written = json.loads(search.record.path.read_text())["found"]
    assert [f["sigmas"] for f in written] == [list(one.schedule), list(two.schedule)]
    # What is printed is what was measured.
    for s in search.record.scores:
        assert tuple(map(float, listed(s).split(","))) == s


def test_what_is_measured_is_what_edit_makes(tmp_path, saved):
    """With a network, its classes guessed; numbers, disagreement and classes are those of `unistep.edit`."""
    model = load_model(saved("consistency"))
    images = torch.randint(0, 256, (2 * COUNT, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    search = search_of(tmp_path, model, images, seed=3)
    found = search.find(1)
    operator = Inpainting(lower((8, 8)))
    for own in (found.schedule, found.of(USUAL).schedule):
        made = edit(model, images[:COUNT], operator, sigmas=own, seed=3)
        assert search.record.labels["images of the search"] == made.class_labels[:, 0].tolist()
        errors = ((made.images.double() - images[:COUNT].double()) ** 2).mean((1, 2, 3))
        assert search.record.scores[own] == pytest.approx((10 * torch.log10(255**2 / errors)).mean().item(), abs=1e-4)
    assert len(set(search.record.labels["images of the search"])) > 1
    assert set(search.record.residuals) == set(search.record.fresh) == {found.schedule, found.of(USUAL).schedule}
    assert all(0 < apart < 2 for apart in search.record.residuals.values())
    assert found.of(FOUND).residual == search.record.residuals[found.schedule]


def test_classes_are_guessed_once(tmp_path, saved, monkeypatch):
    asked = []
    make = module.make

    def seen(model, method, **options):
        result = make(model, method, **options)
        asked.append((options["class_labels"] is None, options["numbers"].start, result.evaluations))
        return result

    monkeypatch.setattr(module, "make", seen)
    monkeypatch.setattr(module, "_CHUNK", 8)
    model = load_model(saved("consistency"))
    images = torch.randint(0, 256, (2 * COUNT, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    search = search_of(tmp_path, model, images)
    search.find(1)
    assert sorted(start for guessed, start, _ in asked if guessed) == [0, 8, COUNT, COUNT + 8]
    assert {evaluations for guessed, _, evaluations in asked if not guessed} == {1}
    # Those who go on later take them from the record.
    asked.clear()
    again = search_of(tmp_path, model, images)
    assert again.record.labels == search.record.labels
    again.find(2)
    assert asked and not any(guessed for guessed, *_ in asked)


def test_no_difference_by_the_number_of_images_at_once(tmp_path, monkeypatch):
    expected = search_of(tmp_path / "at once").find(1)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert search_of(tmp_path / "in parts").find(1) == expected


# ------------------------------------------------------------------------------------------------------ how it is found


def test_all_candidates_see_the_same_images_and_noise_and_the_judges_others(tmp_path, monkeypatch):
    calls = []
    make = module.make

    def seen(model, method, **options):
        pixels = torch.cat(list(method.y)).sum().item()
        calls.append((tuple(method.levels), options["numbers"], options["seeds"], pixels))
        return make(model, method, **options)

    monkeypatch.setattr(module, "make", seen)
    found = search_of(tmp_path, seed=7).find(2)
    searched, fresh = ([c for c in calls if c[1] == part] for part in (range(COUNT), range(COUNT, 2 * COUNT)))
    assert len(searched) + len(fresh) == len(calls) and {seeds for _, _, seeds, _ in calls} == {7}
    assert len({levels for levels, *_ in searched}) == len(searched) > 4
    assert {levels for levels, *_ in fresh} == {found.schedule, found.of(USUAL).schedule} and len(fresh) == 2
    assert len({y for *_, y in searched}) == len({y for *_, y in fresh}) == 1
    assert searched[0][3] != fresh[0][3]


def test_a_broken_off_search_goes_on_and_finds_the_same(tmp_path, searched, monkeypatch):
    expected = searched[0].found[0]
    made = []
    make = module.make

    def until_stopped(*args, **options):
        made.append(args)
        if len(made) == 6:
            raise KeyboardInterrupt
        return make(*args, **options)

    monkeypatch.setattr(module, "make", until_stopped)
    with pytest.raises(KeyboardInterrupt):
        search_of(tmp_path).find(1)
    again = search_of(tmp_path)
    assert len(again.record.scores) == 5
    assert again.find(1) == expected
    assert len(made) == 1 + len(again.record.scores) + len(again.record.fresh)
    monkeypatch.setattr(module, "make", None)
    assert search_of(tmp_path).find(1) == expected


def test_what_is_shared_is_computed_once(searched):
    search, _ = searched
    schedules = [*search.record.scores, *search.record.fresh]
    tile = 16  # images at once, COUNT of them of use
    assert search.model.denoiser.denoiser.network.calls < 0.8 * tile * sum(map(len, schedules))


def test_progress_is_told(searched):
    _, told = searched
    assert told[0] == ("sigmas 20", 0, COUNT) and ("sigmas 20", COUNT, COUNT) in told
    assert told[-1] == ("sigmas 20,0.3 on fresh images", COUNT, COUNT)


def test_a_model_of_less_noise_than_the_task_is_meant_for(tmp_path):
    search = search_of(tmp_path, model_of(sigma_max=10.0))
    found = search.find(1)
    assert max(s for own in search.record.scores for s in own) <= 10.0
    assert found.schedule == (min(level_grid(search.info), key=lambda s: abs(math.log(s / BEST))),)
    assert [j.names for j in found.judged] == [(FOUND,)]


@pytest.mark.parametrize("sigma_min", [0.0, 0.002, 0.1])
def test_the_grid(sigma_min):
    levels = level_grid(ModelInfo(sigma_min=sigma_min, sigma_max=79.99999))
    assert len(levels) == 40 and levels[0] == 79.99999 and levels == sorted(set(levels), reverse=True)
    assert levels[-1] > max(sigma_min, 0.002)


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed (0, now 1)"),
        ({"task": "deblur"}, "task (inpaint, now deblur)"),
        ({"measured": {"mask": "upper"}}, "measurement"),
        ({"images": grey_below().flip(0)}, "images; delete"),
        ({"metric": FullReferenceMetric("LPIPS", "lower", "0", lambda a, b: a)}, "metric (PSNR in dB, now LPIPS)"),
    ],
)
def test_a_record_of_another_search_is_not_gone_on_with(tmp_path, change, words):
    arguments = {"task": "inpaint", "measured": {"mask": "lower"}, "images": grey_below(), "metric": psnr(), "seed": 0}

    def settings(**changes):
        given = arguments | changes
        places = [given.pop(name) for name in ("task", "measured", "images", "metric")]
        return task_settings(model_of(), *places, **given, dtype=torch.float32)

    record = open_record(tmp_path / "search.json", settings())
    record.scores[(20.0, 0.3)], record.residuals[(20.0, 0.3)], record.labels["x"] = 1.5, 0.25, [3, 1]
    record.write()
    again = open_record(record.path, settings())
    assert (again.scores, again.residuals, again.labels) == (record.scores, record.residuals, record.labels)
    with pytest.raises(UserError) as refused:
        open_record(record.path, settings(**change))
    assert words in str(refused.value) and "\n" not in str(refused.value)


# -------------------------------------------------------------------------------------------------------------- images


def test_images_are_spread_over_the_dataset():
    """A dataset sorted by class: both parts have all classes, and no image is in both."""
    images = (torch.arange(100) // 10)[:, None, None, None].to(torch.uint8).repeat(1, 1, 2, 2)
    images[:, 0, 0, 1] = torch.arange(100)
    chosen = chosen_images(images, 20, "data")
    assert [sorted(set(part[:, 0, 0, 0].tolist())) for part in (chosen[:20], chosen[20:])] == [list(range(10))] * 2
    assert len(set(chosen[:, 0, 0, 1].tolist())) == 40
    assert torch.equal(chosen_images(images, 50, "data").sort(0)[0], images.sort(0)[0])
    with pytest.raises(UserError, match="`num_images` 51: .*, and data has 100; give at most 50"):
        chosen_images(images, 51, "data")


# ------------------------------------------------------------------------------------------------------------ metrics


def test_psnr():
    true = torch.full((3, 1, 2, 2), 100, dtype=torch.uint8)
    made = true.clone()
    made[1] += 10
    made[2, 0, 0, 0] += 20
    numbers = psnr().compare(made, true)
    assert numbers.tolist() == pytest.approx([78.13, 28.13, 28.13], abs=0.01)
    assert psnr().value(numbers[:, None]) == pytest.approx(numbers.mean().item())


def test_the_error_of_a_mean():
    numbers = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    metric = psnr()
    estimate = metric.estimate(metric.value(numbers), metric.without_groups(numbers))
    assert estimate.value == pytest.approx(numbers.mean().item(), abs=1e-6)
    assert estimate.standard_error == pytest.approx(0.05, rel=0.5)


def test_lpips_is_that_of_the_files(tmp_path):
    network = LPIPS(widths=(4, 4, 4, 4, 4))
    for p in network.parameters():
        p.data = torch.rand(p.shape, generator=torch.Generator().manual_seed(p.numel())) / 4
    paths = [str(tmp_path / name) for name in ("vgg.safetensors", "heads.safetensors")]
    for path, prefix in zip(paths, ("features", "lin"), strict=True):
        save_file({name: v for name, v in network.state_dict().items() if name.startswith(prefix)}, path)
    a, b = torch.randint(0, 256, (2, 3, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    metric = lpips(*paths)
    assert torch.allclose(metric.compare(a, b), network(to_float(a), to_float(b)), rtol=1e-5)
    assert metric.compare(a, a).tolist() == [0, 0, 0] and metric.better == "lower"
    save_file({name: v * 2 for name, v in network.state_dict().items() if name.startswith("lin")}, paths[1])
    assert lpips(*paths).digest != metric.digest


class Halves:
    """A classifier that tells bright images from dark ones."""

    info = FeatureInfo("halves", "Halves", "0" * 64, "none", {"probabilities": 2})

    def __call__(self, images, kinds):
        bright = (images.flatten(1).float().mean(dim=1) > 127).float()
        return {"probabilities": torch.stack([1 - bright, bright], dim=1)}


def test_class_agreement():
    images = torch.tensor([0, 0, 255, 255], dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 2, 2)
    metric = class_agreement(Halves())
    assert metric.compare(images, images[[0, 2, 1, 3]]).tolist() == [1, 0, 0, 1]
    assert (metric.better, metric.most) == ("higher", 1)

    class Other(Halves):
        info = FeatureInfo("other", "Other", "0" * 64, "none", {"pool": 2})

    with pytest.raises(UserError, match="class needs a classifier, which other is not"):
        class_agreement(Other())


def test_the_picture(tmp_path, searched):
    search, _ = searched
    sizes = []
    for count in (1, 2):
        save_curves(tmp_path / "curve.png", search.found[:count], search.info, "a title", "PSNR")
        with Image.open(tmp_path / "curve.png") as picture:
            sizes.append(picture.size)
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 100
    assert sizes[1][0] > 1.5 * sizes[0][0]
