"""What all tests share: shape and type checks switched on, the golden values, the toy networks they were made with."""

import json
import multiprocessing
import os
import runpy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook
from torch import Tensor, nn

# Every annotated function of unistep then checks its tensors' shapes and types. This works only on what is imported
# later, so nothing here may import unistep above. The tower is PEP 484's: an int will do where a float is asked for.
install_import_hook("unistep", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# Small tensors gain nothing from threads that wait for each other on a busy machine; nor do the processes started here.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and no failure because a machine is busy.
settings.register_profile("unistep", deadline=None, derandomize=True)
settings.load_profile("unistep")


COLLECTED = pytest.StashKey[set[str]]()


@pytest.hookimpl(tryfirst=True)  # before marks deselect some
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = {item.nodeid.partition("::")[0] for item in items}


class Golden:
    """The values of the published reference code in tests/golden."""

    folder = Path(__file__).parent / "golden"

    def path(self, name: str) -> Path:
        return self.folder / name

    def json(self, name: str) -> Any:
        return json.loads(self.path(name).read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        with np.load(self.path(name)) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture
def collected_files(pytestconfig: pytest.Config) -> set[str]:
    """Files whose tests this session found, chosen or not."""
    return pytestconfig.stash[COLLECTED]


class Toy(nn.Module):
    """toy(a, b, c)(x, t) = a x + b sin(0.01 t) flip(x) + c tanh(x), behind the interface of a network."""

    def __init__(self, a: float, b: float, c: float) -> None:
        super().__init__()
        self.a, self.b, self.c = a, b, c

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        class_labels: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        wave = torch.sin(0.01 * c_noise)[:, None, None, None]
        return self.a * x + self.b * wave * x.flip(-1) + self.c * torch.tanh(x)


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture
def toy() -> Callable[[str], nn.Module]:
    """toy("online"), toy("target") and toy("teacher"): the networks of the golden values."""
    weights = {"online": (0.3, 0.2, 0.4), "target": (0.25, 0.15, 0.35), "teacher": (0.35, 0.1, 0.3)}
    return lambda name: Toy(*weights[name])


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def lively() -> Callable[..., nn.Module]:
    """lively(seed=0, **fields): a small network of random weights, the zero-initialised ones too."""

    def build(seed: int = 0, **fields: Any) -> nn.Module:
        from unistep.networks.patched import PatchedUNetConfig
        from unistep.workflows.runs.network import build_network

        small = {
            "sample_size": 16,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (16, 16),
            "down_block_types": ("DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attn_norm_num_groups": 4,
            "attention_head_dim": 8,
            "patch_size": 2,
        }
        network = build_network(PatchedUNetConfig(**(small | fields)), seed).eval().requires_grad_(False)
        noise = torch.Generator().manual_seed(seed)
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=noise), alpha=0.1)
        return network

    return build


@pytest.fixture(scope="session")
def model_folder(lively: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """model_folder(kind, **fields): the folder of a `lively` network; the same call gives the same folder again."""
    made: dict[str, Path] = {}

    def build(kind: str = "consistency", **fields: Any) -> Path:
        from unistep.formats.model import ModelInfo
        from unistep.formats.model_folder.folder import save_model

        key = repr((kind, sorted(fields.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("models") / kind
            save_model(made[key], lively(**fields), ModelInfo(kind=kind), card="A model of random weights.\n")
        return made[key]

    return build


@pytest.fixture(scope="session")
def network() -> Any:
    """A PatchedUNetConfig of three classes, for 8 x 8 grey images."""
    from unistep.networks.patched import PatchedUNetConfig

    return PatchedUNetConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attn_norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=3,
        patch_size=2,
    )


@pytest.fixture(scope="session")
def saved(network, tmp_path_factory) -> Callable[..., Path]:
    """saved(kind, null_label, base=None, info={}, **fields of the network): a model folder; no weight is zero."""

    def save(
        kind: str = "diffusion", null_label: int | None = None, base: Any = None, info: Any = None, **fields: Any
    ) -> Path:
        from unistep.formats.model import ModelInfo
        from unistep.formats.model_folder.folder import save_model
        from unistep.workflows.runs.network import build_network

        path = tmp_path_factory.mktemp("models") / "model"
        model, noise = build_network(replace(base or network, **fields), seed=7), torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=noise), alpha=0.1)
        save_model(path, model, ModelInfo(kind, null_label=null_label, **(info or {})), card="Random weights.\n")
        return path

    return save


@pytest.fixture
def openai_pt(tmp_path) -> Callable[..., Path]:
    """openai_pt(name): an unconditional network for 32 x 32 colour images, as OpenAI writes one."""

    def make(name: str = "edm_cat256_tiny.pt") -> Path:
        from unistep.formats.openai.layout import diffusers_to_openai
        from unistep.networks.adm import UNetConfig
        from unistep.workflows.runs.network import build_network

        config = UNetConfig(
            sample_size=32,
            down_block_types=("AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D"),
            block_out_channels=(64, 64),
            layers_per_block=1,
            attention_head_dim=64,
            downsample_type="conv",
            upsample_type="conv",
            num_class_embeds=None,
        )
        weights = build_network(config, 3).state_dict()
        noise = torch.Generator().manual_seed(3)
        weights = {name: v + 0.03 * torch.randn(v.shape, generator=noise) for name, v in weights.items()}
        torch.save(diffusers_to_openai(weights, config), tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def start_script() -> Callable[..., BaseProcess]:
    """start_script(path, **names): runs a script, with these globals, in a process of its own.

    It begins at once, for it is forked from one that has only imported torch and the package.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unistep.workflows.train"])

    def start(path: Path, **names: Any) -> BaseProcess:
        arguments = {"init_globals": names, "run_name": "__main__"}
        process = context.Process(target=runpy.run_path, args=(str(path),), kwargs=arguments, daemon=True)
        process.start()
        return process

    return start


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process may not write to; root, who may write anywhere, is somebody else meanwhile."""
    if not hasattr(os, "seteuid"):
        pytest.skip("needs POSIX users")
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        if root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)
            os.chmod(folder, 0o755)


@pytest.fixture
def no_accelerator_left() -> Iterator[None]:
    """Each `Accelerator` of a test is the first of its process: accelerate keeps its state in the class."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
