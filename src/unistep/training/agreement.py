"""Questions of which one process's yes is the answer of all: whether to stop, and whether something failed.

They are asked in every step. Asked through the devices, a GPU would have to finish the step first; so they go from
processor to processor, by a group of their own where the gradients' one is of GPUs.
"""

import torch
import torch.distributed as dist
from accelerate import Accelerator


class Agreement:
    """Answers that are the same on all processes. It is made, and asked, on all of them in the same order.

    Args:
        accelerator: devices and processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._several = accelerator.num_processes > 1
        # A group that is there already is taken: with another one more sockets would connect every two processes.
        apart = self._several and dist.get_backend() != dist.Backend.GLOO
        self._group = dist.new_group(backend="gloo") if apart else None

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is true on one process.

        Args:
            flags: flags of this process, as many on each.
        """
        if not self._several:
            return list(flags)
        numbers = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._group)
        return [bool(number) for number in numbers.tolist()]
