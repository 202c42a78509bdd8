"""onnxruntime-web, the program that runs a network in a browser: npm's package at one version, its files known by hash.

The package `unistep` does not contain it: it is several times as large. The npm client of the machine fetches it, with
that client's registry, proxy and mirror, once; the files that are needed stay in the user's cache. Where there is no
npm or no network, a folder with the files of the package takes its place.
"""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unistep.checks import user_path
from unistep.errors import UserError
from unistep.files import whole_file
from unistep.formats.published.file import cache_folder, sha256_of

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
_SECONDS = 600


@dataclass(frozen=True)
class RuntimeFile:
    """A file of the runtime.

    Args:
        source: name in the folder `dist` of the package.
        sha256: SHA-256 of the content, 64 hexadecimal digits.
        gpu: whether only browsers with WebGPU load it.
    """

    source: str
    sha256: str
    gpu: bool

    @property
    def name(self) -> str:
        """Name in the page: of an ending that every static host knows."""
        return f"{self.source.removesuffix('.mjs')}.js" if self.source.endswith(".mjs") else self.source


_WASM = "ort-wasm-simd-threaded"
FILES = (
    RuntimeFile("ort.wasm.min.mjs", "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b", False),
    RuntimeFile(f"{_WASM}.mjs", "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b", False),
    RuntimeFile(f"{_WASM}.wasm", "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2", False),
    RuntimeFile("ort.webgpu.min.mjs", "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0", True),
    RuntimeFile(f"{_WASM}.asyncify.mjs", "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28", True),
    RuntimeFile(f"{_WASM}.asyncify.wasm", "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da", True),
)

_GIVE = f"give a folder with the files of npm's {PACKAGE} {VERSION} as `runtime_folder`"


def runtime_files(folder: str | os.PathLike[str] | None = None) -> dict[RuntimeFile, Path]:
    """Returns the path of every file of the runtime.

    Args:
        folder: folder with the files of npm's package, itself or its `dist`; None takes those of the cache, which npm
            fetches the first time.

    Raises:
        UserError: a file is missing or another than that of the version, or npm is missing or cannot fetch them.
    """
    if folder is not None:
        return _given(user_path(folder))
    cache = cache_folder(f"{PACKAGE}-{VERSION}")
    if not all((cache / one.source).is_file() and sha256_of(cache / one.source) == one.sha256 for one in FILES):
        _fetch(cache)
    return {one: cache / one.source for one in FILES}


def _given(folder: Path) -> dict[RuntimeFile, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder", _GIVE, field="runtime_folder")
    places = (folder, folder / "dist", folder / "node_modules" / PACKAGE / "dist")
    inside = next((place for place in places if (place / FILES[0].source).is_file()), folder)
    for one in FILES:
        if not (inside / one.source).is_file():
            raise UserError(f"{folder} lacks {one.source}", _GIVE, field="runtime_folder")
        if sha256_of(inside / one.source) != one.sha256:
            message = f"{inside / one.source} is not the file of {PACKAGE} {VERSION}"
            raise UserError(message, "give the folder of that version", field="runtime_folder")
    return {one: inside / one.source for one in FILES}


def _fetch(cache: Path) -> None:
    """Brings the files to the cache by npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"{PACKAGE} {VERSION} is fetched by npm, which is not installed", f"install it, or {_GIVE}")
    try:
        with tempfile.TemporaryDirectory() as place:
            _pack([npm, "pack", f"{PACKAGE}@{VERSION}"], Path(place))
            archive = next(Path(place).glob("*.tgz"), None)
            if archive is None:
                raise UserError(f"npm gave no file of {PACKAGE} {VERSION}", f"try again, or {_GIVE}")
            _unpack(archive, cache)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"cannot keep {PACKAGE} in {cache}: {_line(error)}", f"make room there, or {_GIVE}") from None


def _pack(words: Sequence[str], place: Path) -> None:
    try:
        settings = os.environ | {"npm_config_ignore_scripts": "true", "npm_config_loglevel": "error"}
        done = subprocess.run(
            words, cwd=place, env=settings, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"npm did not fetch {PACKAGE} {VERSION} in {_SECONDS // 60} minutes", f"or {_GIVE}") from None
    if done.returncode:
        said = (
            [line for line in done.stderr.splitlines() if "code" in line] or done.stderr.splitlines() or ["no reason"]
        )
        reason = said[0].replace("npm error", "").replace("code", "").strip()
        raise UserError(f"npm cannot fetch {PACKAGE} {VERSION} ({reason})", f"connect to a network, or {_GIVE}")


def _unpack(archive: Path, cache: Path) -> None:
    with tarfile.open(archive) as package:
        for one in FILES:
            try:
                source = package.extractfile(f"package/dist/{one.source}")
            except KeyError:
                source = None
            if source is None:
                raise UserError(f"npm's {PACKAGE} {VERSION} lacks {one.source}", _GIVE)
            with whole_file(cache / one.source) as temporary:
                with temporary.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                if sha256_of(temporary) != one.sha256:
                    raise UserError(f"npm's {one.source} of {PACKAGE} {VERSION} is another file than known", _GIVE)


def _line(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return reason.splitlines()[0]
