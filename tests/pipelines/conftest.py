import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


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
