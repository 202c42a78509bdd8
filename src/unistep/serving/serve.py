"""`unistep.serve`: models behind HTTP, with a page to try them on."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unistep.arguments import plain_arguments
from unistep.checks import check_range, user_path
from unistep.errors import UserError
from unistep.prepared.table import RuntimeName

if TYPE_CHECKING:
    from unistep.serving.run import Server
    from unistep.serving.security import Access

_LOCAL = ("127.0.0.1", "localhost", "::1")
_MOST_TOKENS = 1 << 20


@plain_arguments(empty=["host"])
def serve(
    models: Sequence[str] | None = None,
    *,
    name: Sequence[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    open: bool = False,
    token_file: str | os.PathLike[str] | None = None,
    no_auth: bool = False,
    allow_host: Sequence[str] | None = None,
    allow_origin: Sequence[str] | None = None,
    max_batch: int = 64,
    max_wait_ms: float = 10.0,
    lanes: int | None = None,
    max_queue: int = 4096,
    max_images: int = 256,
    max_body: int = 16 << 20,
    rate: float = 0.0,
    keep_minutes: float = 10.0,
    grace_seconds: float = 20.0,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    runtime: RuntimeName = "eager",
    device: str | None = None,
    background: bool = False,
) -> "Server":
    """Serves models over HTTP until it is stopped, and a page on which they are tried.

    The addresses are those of OpenAI's images (`/v1/images/generations`, `/v1/images/edits`, `/v1/models`), of Hugging
    Face's inference (`/models/NAME`) and of Replicate (`/predictions`). An image is the same as by `unistep.sample`,
    alone or among a thousand others.

    Args:
        models: model folders, run directories, files, names of embedded models or names on the hub; default: mnist,
            the embedded model of digits.
        name: names of models for clients, as digits=PATH; a model in `models` is called by the end of its path.
        host: address to listen at; others than this machine's need tokens or `no_auth`.
        port: port to listen at, from 0 to 65535; 0 takes a free one.
        open: open the page in a browser.
        token_file: file with the tokens that clients may use, one a line; default: those of UNISTEP_TOKENS, separated
            by commas, else none are needed.
        no_auth: listen to other machines without tokens.
        allow_host: names by which clients may call this server, as images.example.org; default: this machine's own at
            a local `host`, any elsewhere.
        allow_origin: origins whose pages may use the server, as https://example.org; default: none but its own.
        max_batch: images that are computed at once, at most.
        max_wait_ms: milliseconds that a batch waits for more requests.
        lanes: processes that compute small images on a CPU side by side, each with its own copy of the models, from 0
            to 64; default: one a core, up to 8.
        max_queue: images that may wait; beyond it requests are refused with status 429.
        max_images: images of one request, at most.
        max_body: bytes of a request's body, at most.
        rate: requests a second of one token or address over a minute; default: no limit.
        keep_minutes: minutes that results of predictions are kept.
        grace_seconds: seconds that running requests have to end when the server stops.
        dtype: precision that the networks compute in; auto is the fastest on the device, and fp32 for small networks.
        runtime: runtime that computes the networks on a CPU: eager, PyTorch itself; another one, for which they are
            prepared once and kept (`unistep cache`); or auto, the fastest of those installed.
        device: cpu, cuda, cuda:1 or mps; default: cuda where there is one.
        background: return when the server answers, and leave it running until its `stop`.

    Returns:
        The server: with `background` a running one, which `with` stops; else one that has stopped.

    Raises:
        UserError: a model that cannot be opened, a place that is taken, a host that needs tokens.

    Example:
        >>> import unistep, urllib.request
        >>> with unistep.serve(port=0, background=True) as server:
        ...     urllib.request.urlopen(f"{server.address}/livez").read()
        b'ok'
    """
    check_range("port", port, 0, 65535)
    try:
        import fastapi  # noqa: F401
        import httptools  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}", "pip install 'unistep[serve]'") from None
    from unistep.serving.config import ServerConfig
    from unistep.serving.run import browse, make_server

    config = ServerConfig(
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        lanes=lanes,
        max_queue=max_queue,
        max_images=max_images,
        max_body=max_body,
        rate=rate,
        keep_minutes=keep_minutes,
        grace_seconds=grace_seconds,
    )
    access = _access(host, token_file, no_auth, allow_host, allow_origin)
    places = named_places(models or [], name or [])
    server = make_server(places, config, access, host=host, port=port, dtype=dtype, runtime=runtime, device=device)
    if open:
        browse(server.address)
    if background:
        server.start()
    else:
        server.run()
    return server


def named_places(models: Sequence[str], names: Sequence[str]) -> dict[str, str | None]:
    """Returns the place of each model by its name; without any the embedded one, which has no place.

    Raises:
        UserError: a name without a place, or two models of one name.
    """
    found: dict[str, str | None] = {}
    pairs = [(Path(one.rstrip("/")).name or one, one) for one in models]
    for one in names:
        short, _, place = one.partition("=")
        if not short or not place:
            raise UserError(f"{one!r} is no name with its place", "give it as digits=PATH", field="name")
        pairs.append((short, place))
    for short, place in pairs:
        if short in found:
            raise UserError(f"two models are called {short}", "give one of them as other=PATH", field="name")
        found[short] = place
    return found or {"mnist": None}


def _access(
    host: str,
    token_file: str | os.PathLike[str] | None,
    no_auth: bool,
    allow_host: Sequence[str] | None,
    allow_origin: Sequence[str] | None,
) -> "Access":
    from unistep.serving.security import Access

    local = host in _LOCAL or host.startswith("127.")
    tokens = _tokens(token_file)
    if no_auth and tokens:
        raise UserError("`no_auth` and tokens exclude each other", "give one")
    if not local and not tokens and not no_auth:
        raise UserError(f"{host} is open to other machines", "give `token_file`, or `no_auth`", field="host")
    hosts = tuple(one.lower() for one in allow_host or ())
    return Access(tokens, hosts, local, tuple(allow_origin or ()))


def _tokens(token_file: str | os.PathLike[str] | None) -> tuple[str, ...]:
    from unistep.files import check_regular_file
    from unistep.serving.security import check_tokens

    if token_file is not None:
        path = user_path(token_file)
        check_regular_file(path, "give a file with one token a line", most_bytes=_MOST_TOKENS)
        text = path.read_text(encoding="utf-8", errors="replace")
        listed = [line.strip() for line in text.splitlines()]
        tokens = tuple(line for line in listed if line and not line.startswith("#"))
        if not tokens:
            raise UserError(f"{path} holds no token", "write one a line", field="token_file")
    else:
        tokens = tuple(one.strip() for one in os.environ.get("UNISTEP_TOKENS", "").split(",") if one.strip())
    try:
        check_tokens(tokens)
    except ValueError:
        remedy = "use 16 or more letters, digits and signs, as `openssl rand -hex 24` prints"
        raise UserError("a token is too short, or holds other than visible ASCII", remedy) from None
    return tokens
