"""Devices of this machine by name."""

import torch

from unistep.errors import UserError


def pick_device(name: str | None, local_rank: int = 0) -> torch.device:
    """Returns the device that a name means; processes on one machine take one accelerator each.

    Args:
        name: cpu, cuda, cuda:1 or mps; None is cuda where there is one, else cpu.
        local_rank: number of this process on its machine.

    Raises:
        UserError: there is no such device here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"`device` {name} is unknown; give cpu, cuda, cuda:1 or mps") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = there.get(device.type)
    if count is None:
        raise UserError(f"`device` {name} is unknown; give cpu, cuda, cuda:1 or mps")
    if not count or (device.index or 0) >= count:
        found = f"there are {count}" if count else "there is none, or torch was built without it"
        raise UserError(f"`device` {name}: {found}; give another")
    return torch.device("cuda", local_rank % count) if name == "cuda" else device
