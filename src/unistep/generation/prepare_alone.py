"""The process that prepares one model: reads a `Request` as JSON, prints the name of each piece of work."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from unistep.errors import UserError
from unistep.generation.prepare import Request
from unistep.runtime.child import own_output

_LEVELS = 4


def main() -> None:
    """Makes one entry of the cache; exits with 2 and a line on stderr for a user's mistake."""
    request = Request(**json.load(sys.stdin))
    stages = own_output()
    try:
        make(request, lambda stage: print(stage, file=stages, flush=True))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def make(request: Request, on_stage: Callable[[str], None]) -> None:
    """Makes the entry of a request, unless another process has made it meanwhile.

    Args:
        request: the request.
        on_stage: receives the name of each piece of work when it begins.

    Raises:
        UserError: the model cannot be opened, or the cache not written to.
    """
    import torch

    from unistep.core.noise import karras_sigmas
    from unistep.formats.open import open_model
    from unistep.generation.generate import tile_size
    from unistep.prepared.make import make_entry
    from unistep.prepared.store import making
    from unistep.prepared.table import RUNTIMES

    torch.set_num_threads(request.threads)
    with making(Path(request.root), request.key) as folder:
        if folder is None:
            return
        on_stage("open the model")
        model = open_model(request.name, **request.options)
        levels = karras_sigmas(_LEVELS, max(model.info.sigma_min, 0.02), model.info.sigma_max).tolist()
        versions = RUNTIMES[request.runtime].versions()
        make_entry(
            folder,
            request.key,
            RUNTIMES[request.runtime],
            model.denoiser,
            request.precision,
            shape=model.image_shape,
            num_classes=model.num_classes,
            sigmas=tuple(levels),
            tile=tile_size(model.image_shape, 1, "cpu"),
            about={
                "model": request.name,
                "runtime": request.runtime,
                "precision": request.precision,
                "threads": request.threads,
                "versions": versions,
            },
            on_stage=on_stage,
        )


if __name__ == "__main__":
    main()
