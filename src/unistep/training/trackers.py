"""Services that follow a run beside TensorBoard: Weights & Biases, MLflow and trackio, by Accelerate's trackers.

A stage is a run of its own in the service's project "unistep". Its name there is kept in `trackers.json`, by which a
resumed stage goes on with the same one. No service ever ends a training: one that fails on the way is left out from
then on, with a warning.
"""

import contextlib
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from unistep.errors import UserError
from unistep.files import whole_file, write_error
from unistep.training.config import TrackerName

_log = logging.getLogger("unistep")

PROJECT = "unistep"
FILE = "trackers.json"


@dataclass(frozen=True)
class Service:
    """A service, and its calls that are not those of every tracker of Accelerate.

    Args:
        title: name in messages.
        begin: arguments of the tracker for the folder of a stage, its title, the name that is kept, and whether the
            service has it already.
        kept: name that a tracker which has begun is kept by, given the one that was asked for.
        image: call that records a PNG of samples at a step.
        remedy: advice where it does not begin.
    """

    title: str
    begin: Callable[[Path, str, str, bool], dict[str, Any]]
    kept: Callable[[Any, str], str]
    image: Callable[[Any, int, Path], None]
    remedy: str


def _wandb(folder: Path, title: str, name: str, resumed: bool) -> dict[str, Any]:
    # Its console would take the progress bar's lines.
    settings = {"console": "off"}
    return {"dir": str(folder), "id": name, "name": title, "resume": "allow", "settings": settings}


def _mlflow(folder: Path, title: str, name: str, resumed: bool) -> dict[str, Any]:
    return {"run_name": title, "run_id": name if resumed else None}


def _trackio(folder: Path, title: str, name: str, resumed: bool) -> dict[str, Any]:
    return {"name": f"{title} {name}", "resume": "allow", "embed": False}


def _wandb_image(tracker: Any, step: int, path: Path) -> None:
    with Image.open(path) as grid:
        tracker.log_images({"samples": [grid.copy()]}, step=step)


def _trackio_image(tracker: Any, step: int, path: Path) -> None:
    import trackio  # pyright: ignore[reportMissingImports]

    tracker.log({"samples": trackio.Image(str(path))}, step=step)


def _asked(tracker: Any, name: str) -> str:
    return name


_SERVICES: dict[TrackerName, Service] = {
    "wandb": Service(
        "Weights & Biases", _wandb, _asked, _wandb_image, "log in by `wandb login`, or set WANDB_MODE=offline"
    ),
    "mlflow": Service(
        "MLflow",
        _mlflow,
        lambda tracker, _: tracker.tracker.info.run_id,
        lambda tracker, step, path: tracker.log_artifact(str(path), "samples"),
        "set MLFLOW_TRACKING_URI to a server or a database, as sqlite:///mlflow.db",
    ),
    "trackio": Service("trackio", _trackio, _asked, _trackio_image, "see `trackio show`"),
}


class Trackers:
    """The services that follow a stage.

    Args:
        names: services.
        folder: folder of the stage.
        title: name of the stage's run for people, as "cifar10-minutes/student".
        trackers: class of a tracker of each service; None is Accelerate's.
    """

    def __init__(
        self,
        names: tuple[TrackerName, ...],
        folder: Path,
        title: str,
        trackers: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.names, self.folder, self.title = names, folder, title
        self._classes = trackers
        self._open: dict[TrackerName, Any] = {}

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Begins a run of the stage at every service, or goes on with the one that it has.

        Args:
            settings: settings of the stage by dotted name.

        Raises:
            UserError: a service does not answer, lacks its package or is not logged in to.
        """
        if not self.names:
            return
        known = self._known()
        for name in self.names:
            service, old = _SERVICES[name], known.get(name)
            asked = old or secrets.token_hex(4)
            try:
                tracker = self._class(name)(PROJECT, **service.begin(self.folder, self.title, asked, old is not None))
                tracker.start()
                known[name] = service.kept(tracker, asked)
                if old is None:
                    tracker.store_init_configuration({key: _plain(value) for key, value in settings.items()})
            except ImportError:
                self.end()
                raise UserError(
                    f"`trackers` {name}: the package {name} is not installed", f"pip install {name}"
                ) from None
            except Exception as error:  # each service has errors of its own
                self.end()
                problem = f"`trackers` {name}: {service.title} does not begin ({_line(error)})"
                raise UserError(problem, f"{service.remedy}; or leave it out") from None
            self._open[name] = tracker
        path = self.folder / FILE
        try:
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(known) + "\n")
        except OSError as error:
            raise write_error(path, error, "resume") from None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers.

        Args:
            step: number of steps done.
            values: finite numbers by name.
        """
        for name, tracker in list(self._open.items()):
            with self._harmless(name):
                tracker.log(dict(values), step=step)

    def write_samples(self, step: int, path: Path) -> None:
        """Records a grid of samples.

        Args:
            step: number of steps done.
            path: the grid, a PNG.
        """
        for name, tracker in list(self._open.items()):
            with self._harmless(name):
                _SERVICES[name].image(tracker, step, path)

    def end(self) -> None:
        """Ends the runs at the services, which send what is left."""
        for name, tracker in list(self._open.items()):
            with self._harmless(name):
                tracker.finish()
        self._open.clear()

    def _class(self, name: TrackerName) -> Callable[..., Any]:
        if self._classes is not None:
            return self._classes[name]
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        return LOGGER_TYPE_TO_CLASS[name]

    def _known(self) -> dict[str, str]:
        """Names of the stage's runs by service; a file that is damaged has none."""
        try:
            found = json.loads((self.folder / FILE).read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}

    @contextlib.contextmanager
    def _harmless(self, name: TrackerName) -> Iterator[None]:
        """While entered, an error of a service leaves it out from then on."""
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            _log.warning("%s no longer follows the run: %s", _SERVICES[name].title, _line(error))


def _plain(value: Any) -> bool | int | float | str | None:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
