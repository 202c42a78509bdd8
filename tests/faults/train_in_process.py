"""A process of its own for `unistep train` that may end by a kill at a certain operation on a file.

It is number `rank` of `processes`; what it prints goes to the file `said`. It kills itself before operation number
`kill_at` on a file or folder below `folder`, where that is not 0. From step `bad` on the loss is no number for some
steps, as long as the learning rate has not been lowered; -1 leaves it.
"""

import os
import signal
import sys

arguments: list[str]
said: str
folder: str
rank: int
processes: int
port: int
kill_at: int
bad: int

_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
_BAD_STEPS = 4

file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
for stream in (1, 2):
    os.dup2(file, stream)
if processes > 1:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}

done = 0


def count(event: str, given: tuple) -> None:
    global done
    if event in _OPERATIONS and given and str(given[0]).startswith(folder):
        done += 1
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


if kill_at:
    sys.addaudithook(count)

from unistep.cli.main import main  # noqa: E402
from unistep.training.trainer import Trainer  # noqa: E402

if bad >= 0:
    train_step = Trainer.train_step

    def bent(self: Trainer, step: int) -> object:
        loss = self.objective.loss
        if bad <= step < bad + _BAD_STEPS and self.guard.rollbacks == 0:
            self.objective.loss = lambda *given: loss(*given) * float("nan")
        try:
            return train_step(self, step)
        finally:
            self.objective.loss = loss

    Trainer.train_step = bent  # pyright: ignore

main(["train", *arguments])
