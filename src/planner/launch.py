"""The command that starts a run on its GPUs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from src.planner.sizes import Setting

OWN_KEYS = ("nodes", "gpus_per_node", "gpu")
"""Keys of preflight, which training does not have."""

PORT = 29500


def launch_command(setting: Setting, overrides: Sequence[str]) -> str:
    """What to type: plain python for one process that has no others, else torchrun, once on every node.

    Between nodes the rendezvous is static, so that rank 0 is known beforehand: it is on the node of NODE_RANK 0.
    """
    kept = [word for word in overrides if word.lstrip("+").partition("=")[0] not in OWN_KEYS]
    program = shlex.join(["-m", "src.train", *kept])
    if setting.world == 1 and setting.engine == "single":
        return f"python {program}"
    if setting.nodes == 1:
        return f"torchrun --standalone --nnodes 1 --nproc-per-node {setting.gpus_per_node} {program}"
    return (
        f"torchrun --nnodes {setting.nodes} --nproc-per-node {setting.gpus_per_node} --node-rank $NODE_RANK "
        f"--rdzv-backend static --master-addr $MASTER_ADDR --master-port {PORT} {program}"
    )
