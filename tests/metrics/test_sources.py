"""Images to measure: the same whenever they are asked for, and known by a digest."""

import dataclasses

import pytest
import torch

from unistep.errors import UserError
from unistep.generation.labels import random_labels
from unistep.generation.plan import default_plan
from unistep.metrics.sources import DataSource, ImageSource, ModelSource
from unistep.workflows.models import open_any


def test_the_digest_is_of_the_pixels_and_of_how_many(pictures):
    pixels = pictures(20)
    source = DataSource(pixels, "pictures")
    assert isinstance(source, ImageSource)
    assert source.digest == DataSource(pixels.clone(), "under another name").digest
    changed = pixels.clone()
    changed[13, 0, 2, 2] ^= 1
    others = [changed, pixels[:19], pixels.view(20, 1, 4, 16), pixels.flip(0)]
    assert len({source.digest, *(DataSource(other, "pictures").digest for other in others)}) == 5
    assert DataSource(pixels, "pictures", 19).digest == DataSource(pixels[:19], "pictures").digest


def test_the_first_so_many(pictures):
    source = DataSource(pictures(20), "pictures", 7)
    assert source.count == 7 and source.to_dict()["count"] == 7
    assert torch.equal(source.images(range(3, 7)), pictures(20)[3:7])


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (torch.rand(4, 1, 8, 8) * 2 - 1, ["torch.float32 from -", "uint8 from 0 to 255", "127.5"]),
        (torch.zeros(4, 1, 8, 8, dtype=torch.int64), ["torch.int64 from 0 to 0"]),
        (torch.full((4, 1, 8, 8), torch.nan), ["torch.float32 from nan to nan"]),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), ["[N, C, H, W]", "[4, 8, 8]"]),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), ["[N, C, H, W]", "[4, 8, 8, 3]"]),
    ],
)
def test_tensors_that_are_no_images(pixels, words):
    with pytest.raises(UserError) as caught:
        DataSource(pixels, "mine")
    message = str(caught.value)
    assert message.startswith("mine: ") and "\n" not in message
    assert [word for word in words if word not in message] == []


def test_more_than_there_are(pictures):
    with pytest.raises(UserError, match="`num_images` 21: pictures has 20 images; give at most that"):
        DataSource(pictures(20), "pictures", 21)


@pytest.fixture(scope="module")
def model():
    return open_any(None)


def source_of(model, **changes) -> ModelSource:
    count = changes.pop("count", 40)
    given = {
        "model": model,
        "plan": default_plan(model.info),
        "count": count,
        "seed": 0,
        "labels": random_labels(changes.get("seed", 0), range(count), 10),
        "batch_size": 64,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "labelling": "drawn from the seed",
    }
    return ModelSource(**(given | changes))


def test_a_model_makes_the_same_images_in_any_parts(model):
    source = source_of(model)
    assert isinstance(source, ImageSource)
    whole = source.images(range(40))
    assert whole.shape == (40, 1, 28, 28)
    assert torch.equal(torch.cat([source.images(range(0, 5)), source.images(range(5, 40))]), whole)
    assert torch.equal(source_of(model, count=17).images(range(17)), whole[:17])


def test_the_digest_is_of_what_an_image_depends_on(model):
    digest = source_of(model).digest
    assert source_of(model, count=7).digest == digest  # image i is the same
    assert source_of(model, batch_size=3).digest == digest
    plan = dataclasses.replace(default_plan(model.info), sigmas=(80.0, 1.0))
    others = [
        {"seed": 1},
        {"plan": plan},
        {"dtype": torch.bfloat16},
        {"labelling": "3", "labels": torch.full((40,), 3)},
    ]
    assert len({digest, *(source_of(model, **other).digest for other in others)}) == 5


def test_the_description_is_json_and_tells_the_run(model):
    described = source_of(model, seed=3).to_dict()
    assert described["seed"] == 3 and described["evaluations"] == 1 and described["count"] == 40
    assert described["sigmas"] == (80.0,)
