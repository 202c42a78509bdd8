"""A process that prepares a model for a runtime, and kills itself before operation number `kill_at` on a file below
`folder`, or after so many seconds where it is negative. The request comes on stdin."""

import os
import signal
import sys
import threading

folder, kill_at = sys.argv[1], float(sys.argv[2])
_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
done = 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count(event: str, given: tuple) -> None:
    global done
    if event in _OPERATIONS and given and str(given[0]).startswith(folder):
        done += 1
        if done == kill_at:
            die()


if kill_at > 0:
    sys.addaudithook(count)

from unistep.generation.prepare_alone import main  # noqa: E402

if kill_at < 0:
    timer = threading.Timer(-kill_at, die)
    timer.daemon = True
    timer.start()
main()
