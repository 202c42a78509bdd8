"""A server in a process of its own, which never outlives its test."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def server_process(words: Sequence[str], **options) -> Iterator[subprocess.Popen]:
    """Starts `words` and, should the test fail, kills it: `Popen` by itself would wait for it for ever."""
    with subprocess.Popen(words, stderr=subprocess.PIPE, **options) as server:
        try:
            yield server
        except BaseException:
            server.kill()
            raise
