"""Other servers of the embedded model, for `serving.py`: python benchmarks/serving_peers.py fastapi 8001."""

import base64
import sys
import threading
from typing import Any

import uvicorn
from fastapi import Body, FastAPI

import unistep
from unistep.core.random import image_seeds
from unistep.generation.labels import make_labels
from unistep.generation.plan import default_plan
from unistep.serving.batch import Row, make_rows
from unistep.serving.pictures import encode_now

try:
    import litserve
except ModuleNotFoundError:
    litserve = None

PATH = "/v1/images/generations"


def plain(port: int) -> None:
    """Serves as one would without batches: a handler that makes the images of one request at a time."""
    app, model, lock = FastAPI(), unistep.load(device="cpu"), threading.Lock()

    @app.post(PATH)
    def generations(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        with lock:
            made = unistep.sample(model, num_images=body["n"], seed=body["seed"], progress=False).pixels
        return {"data": [{"b64_json": base64.b64encode(encode_now(one)).decode()} for one in made]}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


if litserve is not None:

    class Api(litserve.LitAPI):
        """The model for LitServe, which batches requests; each is for one image."""

        def setup(self, device: str) -> None:
            """Opens the model."""
            self.model = unistep.load(device="cpu")
            self.plan = default_plan(self.model.info)

        def decode_request(self, request: dict[str, Any]) -> int:
            """Returns the seed of a request."""
            return int(request["seed"])

        def batch(self, inputs: list[int]) -> list[int]:
            """Returns the seeds of a batch."""
            return inputs

        def predict(self, x: list[int]) -> list[Any]:
            """Makes the images of a batch."""
            rows = []
            for seed in x:
                labels = make_labels(self.model.num_classes, 1, None, seed)
                rows.append(Row(int(image_seeds(seed, [0])[0]), 0, None if labels is None else int(labels[0])))
            model = self.model
            made = make_rows(model.denoiser, self.plan, model.image_shape, rows, tile=16, by_place=False)
            assert made is not None
            return list(made)

        def unbatch(self, output: list[Any]) -> list[Any]:
            """Returns the images of a batch."""
            return output

        def encode_response(self, output: Any) -> dict[str, Any]:
            """Returns the answer with an image."""
            return {"data": [{"b64_json": base64.b64encode(encode_now(output)).decode()}]}


def batched(port: int) -> None:
    """Serves by LitServe."""
    api = Api(max_batch_size=64, batch_timeout=0.002, api_path=PATH)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=300)
    server.run(port=port, host="127.0.0.1", generate_client_file=False, log_level="error")


if __name__ == "__main__":
    {"fastapi": plain, "litserve": batched}[sys.argv[1]](int(sys.argv[2]))
