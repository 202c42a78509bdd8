import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from unistep.text import version_of


def test_installed_versions():
    assert version_of() == version("unistep") and version_of("torch") == version("torch")


def test_a_package_that_is_not_installed():
    assert version_of("unistep-of-nowhere") == "source"


def test_the_sources_run_without_an_installation():
    source = Path(__file__).parents[1] / "src"
    code = f"import sys; sys.path.insert(0, {str(source)!r}); import unistep; print(unistep.__version__)"
    # -I -S: no site-packages, as on a machine that has the sources alone.
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert found.stdout == "source\n", found.stderr
