"""`unistep cache`: the models that were prepared for a runtime, and are kept in the user's cache."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unistep.text import html_table


@dataclass(frozen=True)
class CacheListing:
    """Prepared models in the cache.

    Args:
        path: folder of the cache.
        entries: facts about each prepared model by name, newest first.
        cleared: number of entries that were deleted.
    """

    path: Path
    entries: tuple[dict[str, Any], ...]
    cleared: int = 0

    def rows(self) -> list[tuple[str, str]]:
        """Returns names and values as text, a prepared model a row."""
        return [(_what(entry), _facts(entry)) for entry in self.entries]

    def __repr__(self) -> str:
        return f"CacheListing({len(self.entries)} prepared models in {self.path})"

    def _repr_html_(self) -> str:
        return html_table("prepared models", self.rows())


def cache(*, clear: bool = False) -> CacheListing:
    """Lists the models that are prepared for a runtime, or deletes them.

    A model that is given by name is prepared when it is used with `runtime`, and again when its files, the runtime or
    the processor are others. The folder is $XDG_CACHE_HOME/unistep/prepared, by default in ~/.cache.

    Args:
        clear: delete all of them, except for what another process is preparing.

    Returns:
        The prepared models that are there afterwards.

    Raises:
        UserError: the cache cannot be written to.

    Example:
        >>> import unistep
        >>> unistep.cache().path.name
        'prepared'
    """
    from unistep.generation.prepare import prepared_folder
    from unistep.prepared import store

    root = prepared_folder()
    cleared = store.clear(root) if clear else 0
    found = (dict(entry.about) | {"key": entry.key, "bytes": entry.num_bytes} for entry in store.entries(root))
    return CacheListing(root, tuple(found), cleared)


def _what(entry: dict[str, Any]) -> str:
    return f"{entry.get('model')}, {entry.get('runtime')} {entry.get('precision')}"


def _facts(entry: dict[str, Any]) -> str:
    if "failure" in entry:
        return f"none: {entry['failure']}"
    size, worst = f"{entry['bytes'] / 2**20:,.1f} MiB", min(entry.get("psnr", {"": 0.0}).values())
    faster = entry.get("eager_seconds", 0.0) / max(entry.get("seconds", 1.0), 1e-9)
    return f"{size}, {worst:.1f} dB or more from eager, {faster:.2f} times as fast"
