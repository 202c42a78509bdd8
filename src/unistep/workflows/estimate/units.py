"""Numbers in the units that suit them."""

import math

import torch


def in_flops(count: float) -> str:
    """A number of FLOPs, in the unit that suits it."""
    unit = "T" if count >= 1e12 else "G" if count >= 1e9 else "M"
    return f"{three_digits(count / {'T': 1e12, 'G': 1e9, 'M': 1e6}[unit])} {unit}FLOP"


def three_digits(value: float) -> str:
    """A number rounded to three digits, or to a whole one."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def in_bytes(count: float) -> str:
    """A number of bytes in MiB or GiB."""
    return f"{count / 2**20:,.1f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


def in_seconds(seconds: float) -> str:
    """A length of time that may be short."""
    return f"{three_digits(seconds * 1000)} ms" if seconds < 1 else f"{three_digits(seconds)} s"


def in_hours(hours: float) -> str:
    """A length of time in hours, and in the unit that suits it."""
    digits = max(1, 1 - math.floor(math.log10(hours))) if hours > 0 else 1
    text, days = f"{hours:,.{digits}f} hours", hours / 24
    if hours < 1:
        return f"{text} ({hours * 60:.1f} minutes)"
    if days < 2:
        return text
    return (
        f"{hours:,.0f} hours ({days:,.0f} days)" if days < 1000 else f"{hours:,.0f} hours ({days / 365.25:,.0f} years)"
    )


def device_name(device: torch.device) -> str:
    """The device as a person would say it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"the CPU, {threads} thread{'s' * (threads > 1)}"
