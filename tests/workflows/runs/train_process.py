"""A process of its own for `unistep train`: number `rank` of several; what it prints goes to the file `said`."""

import os

arguments: list[str]
said: str
rank: int
processes: int
port: int

file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
for stream in (1, 2):
    os.dup2(file, stream)
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
os.environ |= {"WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}

from unistep.cli.main import main  # noqa: E402

main(["train", *arguments])
