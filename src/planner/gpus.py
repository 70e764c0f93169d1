"""The GPUs that a plan is made for, by their makers' datasheets."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1024**3


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU in a server of eight.

    ``memory``: GiB that the driver reports. ``bf16`` and ``fp32``: dense matrix TFLOP/s (fp32 without TF32, torch's
    default). ``hbm``: GB/s of its memory. ``nvlink``: GB/s in one direction to the other GPUs of its server.
    ``network``: GB/s in one direction from server to server, all of a server's adapters together.
    """

    name: str
    memory: float
    bf16: float
    fp32: float
    hbm: float
    nvlink: float
    network: float


GPUS = {
    # NVIDIA A100 Tensor Core GPU datasheet (SXM4): 312 and 19.5 TFLOP/s, 1,555 or 2,039 GB/s, NVLink 600 GB/s both
    # ways; DGX A100 datasheet: eight 200 Gb/s InfiniBand adapters for computing
    "a100_40": Gpu("A100-40", 39.4, 312, 19.5, 1555, 300, 200),
    "a100_80": Gpu("A100-80", 79.2, 312, 19.5, 2039, 300, 200),
    # NVIDIA H100 Tensor Core GPU datasheet (SXM5): 989 (1,979 with sparsity) and 67 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s
    # both ways; DGX H100 datasheet: eight 400 Gb/s InfiniBand adapters
    "h100": Gpu("H100", 79.2, 989, 67, 3350, 450, 400),
    # NVIDIA H200 Tensor Core GPU datasheet (SXM): as H100, with 141 GB at 4.8 TB/s
    "h200": Gpu("H200", 139.8, 989, 67, 4800, 450, 400),
}
"""By the name that ``gpu=`` takes, smallest first."""

CONTEXT = 1.5
"""GiB that CUDA, cuBLAS and NCCL take before the first tensor (assumed)."""

FRAGMENTATION = 0.05
"""Share of the memory that the caching allocator loses between blocks (assumed)."""


def usable(gpu: Gpu) -> float:
    """Bytes that tensors may fill."""
    return (gpu.memory - CONTEXT) * (1 - FRAGMENTATION) * GIB
