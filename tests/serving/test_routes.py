import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

import unistep
from unistep.generation.labels import random_label
from unistep.serving.routes import openai


def picture(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def post(client, path, body, **given):
    return client.post(path, json=body, **given)


GENERATIONS = "/v1/images/generations"


def test_images_are_those_of_sample(client):
    answer = post(client, GENERATIONS, {"n": 3, "seed": 7, "steps": 2, "class_labels": [3, 8]})
    expected = unistep.sample(num_images=3, seed=7, steps=2, class_labels=[3, 8], progress=False)
    body = answer.json()
    assert answer.status_code == 200 and [d["class_label"] for d in body["data"]] == [3, 8, 3]
    for datum, pixels in zip(body["data"], expected.pixels, strict=True):
        assert (picture(datum["b64_json"]) == pixels[0].numpy()).all()


def test_each_seed_is_the_first_image_of_its_run(client):
    body = post(client, GENERATIONS, {"seeds": [4, 9]}).json()
    for datum, seed in zip(body["data"], (4, 9), strict=True):
        expected = unistep.sample(num_images=1, seed=seed, progress=False).pixels[0, 0]
        assert (picture(datum["b64_json"]) == expected.numpy()).all()


def test_a_later_part_of_a_run(client):
    whole = post(client, GENERATIONS, {"n": 6, "seed": 2}).json()["data"]
    part = post(client, GENERATIONS, {"n": 2, "seed": 2, "first": 4}).json()["data"]
    assert part == whole[4:]


@pytest.mark.parametrize("which", [{"seed": 2}, {"seeds": [2, 2]}])
def test_a_part_that_is_far_away_takes_no_longer(client, which):
    """Its classes are not drawn after those of all images before it."""
    body = post(client, GENERATIONS, {"n": 2, "first": 2**40 - 2} | which).json()
    second = 2**40 - 2 + ("seed" in which)
    labels = [random_label(2, index, 10) for index in (2**40 - 2, second)]
    assert [datum["class_label"] for datum in body["data"]] == labels


@pytest.mark.parametrize(("prompt", "noted"), [("3", False), ("the digit 3!", False), ("a cat", True)])
def test_a_prompt_is_a_class_or_is_noted(client, prompt, noted):
    body = post(client, GENERATIONS, {"prompt": prompt}).json()
    assert ("note" in body) == noted
    if not noted:
        assert body["data"][0]["class_label"] == 3


def test_a_stream_sends_each_image(client):
    text = post(client, GENERATIONS, {"n": 3, "stream": True}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert sorted(event["index"] for event in events) == [0, 1, 2]
    assert {event["type"] for event in events} == {"image_generation.completed"}


def test_an_address_of_an_image(client):
    (datum,) = post(client, GENERATIONS, {"response_format": "url", "size": "56x56"}).json()["data"]
    answer = client.get(datum["url"])
    assert answer.headers["content-type"] == "image/png" and Image.open(io.BytesIO(answer.content)).size == (56, 56)


def test_an_edit_keeps_what_is_not_marked(client):
    digit = unistep.sample(num_images=1, seed=1, class_labels=3, progress=False).pixels[0, 0].numpy()
    mask = np.zeros((28, 28), np.uint8)
    mask[14:] = 255
    files = {"image": png(digit), "mask": png(mask)}
    answer = client.post("/v1/images/edits", files=files, data={"n": "2", "class_labels": "3", "steps": "2"})
    results = [picture(datum["b64_json"]) for datum in answer.json()["data"]]
    assert len(results) == 2 and all((result[:14] == digit[:14]).all() for result in results)


def test_openai_s_masks_are_transparent_where_to_paint(client):
    digit = unistep.sample(num_images=1, seed=1, class_labels=3, progress=False).pixels[0, 0].numpy()
    mask = np.full((28, 28, 4), 255, np.uint8)
    mask[14:, :, 3] = 0
    answer = client.post(
        "/v1/images/edits",
        files={"image": png(digit), "mask": png(mask)},
        data={"options": json.dumps({"task": "inpaint", "class_labels": 3, "steps": 2})},
    )
    assert (picture(answer.json()["data"][0]["b64_json"])[:14] == digit[:14]).all()


def test_a_walk_needs_no_picture(client):
    options = {"task": "walk", "seeds": [1, 2], "frames": 4}
    answer = client.post("/v1/images/edits", data={"options": json.dumps(options), "model": "digits"})
    assert len(answer.json()["data"]) == 5


def test_models(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "digits" and model["classes"] == [str(i) for i in range(10)]
    assert client.get("/v1/models/digits").json() == model


def test_hugging_face(client):
    parameters = {"num_inference_steps": 2, "seed": 3, "guidance_scale": 5}
    answer = post(client, "/models/digits", {"inputs": "7", "parameters": parameters})
    expected = unistep.sample(num_images=1, seed=3, steps=2, class_labels=7, progress=False).pixels[0, 0]
    assert answer.headers["content-type"] == "image/png" and "guidance_scale" in answer.headers["x-unistep-note"]
    assert (np.asarray(Image.open(io.BytesIO(answer.content))) == expected.numpy()).all()


def test_hugging_face_edits(client):
    digit = unistep.sample(num_images=1, seed=1, class_labels=3, progress=False).pixels[0, 0].numpy()
    inputs = base64.b64encode(png(digit)).decode()
    parameters = {"task": "inpaint", "mask": "lower", "class_labels": 3, "steps": 2}
    answer = post(client, "/models/digits", {"inputs": inputs, "parameters": parameters})
    assert (np.asarray(Image.open(io.BytesIO(answer.content)))[:14] == digit[:14]).all()


def test_a_prediction_is_waited_for(client):
    body = post(client, "/predictions", {"input": {"num_outputs": 2, "seed": 4}}).json()
    expected = unistep.sample(num_images=2, seed=4, progress=False).pixels
    assert body["status"] == "succeeded" and len(body["output"]) == 2
    for url, pixels in zip(body["output"], expected, strict=True):
        assert (picture(url.partition(",")[2]) == pixels[0].numpy()).all()


def test_a_prediction_is_polled_and_streamed(client):
    asked = post(client, "/predictions", {"input": {"num_outputs": 2}}, headers={"Prefer": "respond-async"})
    assert asked.status_code == 202
    urls = asked.json()["urls"]
    text = client.get(urls["stream"]).text
    assert text.count("event: output") == 2 and text.endswith("event: done\ndata: {}\n\n")
    assert client.get(urls["get"]).json()["status"] == "succeeded"


def test_a_prediction_is_cancelled(client):
    asked = post(
        client, "/predictions", {"input": {"num_outputs": 200, "steps": 38}}, headers={"Prefer": "respond-async"}
    ).json()
    assert client.post(asked["urls"]["cancel"]).json()["status"] == "canceled"
    assert client.service.engine.queue_length == 0


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (GENERATIONS, {"n": 0}, 400, "n"),
        (GENERATIONS, {"n": 10_000}, 400, "n"),
        (GENERATIONS, {"nn": 1}, 400, "nn"),
        (GENERATIONS, {"steps": 2, "sigmas": [80, 1]}, 400, None),
        (GENERATIONS, {"steps": 40}, 400, None),
        (GENERATIONS, {"n": 250, "timesteps": list(range(1, 39))}, 400, None),
        (GENERATIONS, {"class_labels": "cat"}, 400, "class_labels"),
        (GENERATIONS, {"class_labels": 10}, 400, None),
        (GENERATIONS, {"model": "x"}, 404, "model"),
        (GENERATIONS, {"size": "9x"}, 400, "size"),
        (GENERATIONS, {"seed": -1}, 400, "seed"),
        (GENERATIONS, {"seeds": [1, 2], "n": 3}, 400, "seeds"),
        (GENERATIONS, [], 400, None),
        ("/predictions", {"input": {"webhooks": 1}}, 400, "webhooks"),
        ("/predictions", {"input": {}, "webhook": "http://127.0.0.1/"}, 400, "webhook"),
        ("/predictions", {"input": {"task": "inpaint", "image": "http://127.0.0.1/a.png"}}, 400, "image"),
        ("/predictions", {"input": {"task": "inpaint", "image": "AAAA", "mask": "lower"}}, 400, "image"),
        ("/predictions", {"input": {"num_outputs": "many"}}, 400, "num_outputs"),
        ("/models/digits", {"inputs": "3", "parameters": {"task": "inpaint", "mask": "lower"}}, 400, "inputs"),
        ("/models/other", {"inputs": "3"}, 404, "model"),
    ],
)
def test_mistakes_are_one_shape(client, path, body, status, param):
    answer = post(client, path, body)
    error = answer.json()["error"]
    assert answer.status_code == status and set(error) == {"message", "type", "param"}
    assert error["message"] and "\n" not in error["message"]
    if param:
        assert error["param"] == param


def test_nothing_is_read_from_the_server_s_disk(client, tmp_path):
    mask = tmp_path / "mask.png"
    mask.write_bytes(png(np.full((28, 28), 255, np.uint8)))
    files = {"image": png(np.zeros((28, 28), np.uint8))}
    for named in (str(mask), 5, ["lower"], {"path": str(mask)}):
        given = {"options": json.dumps({"task": "inpaint", "mask": named})}
        answer = client.post("/v1/images/edits", files=files, data=given)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "mask", named
    for given in ({"mask": str(mask)}, {"mask": "x" * 80}):
        answer = client.post("/v1/images/edits", files=files, data=given)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "mask"


def test_counters(client):
    post(client, GENERATIONS, {"n": 3})
    text = client.get("/metrics").text
    assert "unistep_images_total 3.0" in text
    assert 'unistep_requests_total{route="/v1/images/generations",status="200"} 1.0' in text


def test_life_readiness_and_documents(client):
    assert client.get("/livez").text == "ok" and client.get("/readyz").json()["ready"]
    document = client.get("/openapi.json").json()
    assert {GENERATIONS, "/predictions", "/models/{name}"} <= set(document["paths"])
    assert "http" not in client.get("/docs").text.replace("http-equiv", "")
    client.service.ready = False
    assert client.get("/readyz").status_code == 503 and post(client, GENERATIONS, {}).status_code == 503


@pytest.mark.parametrize(
    "body",
    [
        b'{"n": 2, "seed": 5, "class_labels": 3}',
        b'{"n": "two"}',
        b'{"n": 1, "seeds": [1, 2]}',
        b'{"n": 1, "model": "other"}',
        b'{"n": 100000}',
        b'{"n": 1, "unknown": 1}',
        b'{"n": 1, "steps": 1, "sigmas": [80.0]}',
        b"[1, 2]",
        b"{",
        b"",
    ],
)
def test_the_short_way_answers_as_the_route_does(client, body, monkeypatch):
    def answer():
        given = client.post("/v1/images/generations", content=body)
        found = given.json()
        return given.status_code, {key: found[key] for key in found if key not in ("created", "seconds")}

    short = answer()
    monkeypatch.setattr(openai, "GENERATIONS", "/elsewhere")
    assert answer() == short
