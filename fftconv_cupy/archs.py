"""Limits of the GPU architectures, as data."""

from __future__ import annotations

from dataclasses import dataclass

from fftconv_cupy.errors import UnsupportedDeviceError, message

OLDEST_CAPABILITY = 75  # compute capability 7.5, Turing
BULK_COPY_CAPABILITY = 90  # 9.0, Hopper
_CLUSTERED_SHARE = 15 / 16  # of the multiprocessors, those that hold whole clusters of more than two blocks


@dataclass(frozen=True, slots=True)
class ArchLimits:
    """What the plan must know of a GPU.

    Attributes:
        arch: NVRTC's name, ``"sm_90"``.
        block_shared_bytes: dynamic shared memory that one block may take, opted in.
        multiprocessor_shared_bytes: shared memory of a multiprocessor, of which each block takes 1 KB for the system.
        multiprocessors: how many there are; in `ARCHS` those of the largest data-centre GPU, for plans without a GPU.
        has_bulk_copy: copies from global to shared memory by the bulk engine (sm_90 and later).
    """

    arch: str
    block_shared_bytes: int
    multiprocessor_shared_bytes: int
    multiprocessors: int
    has_bulk_copy: bool

    @property
    def has_dependent_launch(self) -> bool:
        """A kernel can be launched while the one before it runs; the GPUs that can also have bulk copies."""
        return self.has_bulk_copy

    @property
    def has_clusters(self) -> bool:
        """Blocks of a cluster reach each other's shared memory; the GPUs that can also have bulk copies."""
        return self.has_bulk_copy

    def at_a_time(self, blocks: int, cluster_blocks: int) -> int:
        """Return the clusters of so many blocks that run at a time where a multiprocessor holds `blocks`.

        The parts of a GPU that a cluster must lie in have even numbers of multiprocessors, some fewer than others.
        """
        share = _CLUSTERED_SHARE if cluster_blocks > 2 else 1.0
        return max(1, int(self.multiprocessors * share) * blocks // cluster_blocks)


# CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability": maximum amount of
# shared memory per block, and per multiprocessor. Multiprocessors: T4, A100, A40, L40S, H100 SXM, B200, RTX PRO 6000.
ARCHS = {
    limits.arch: limits
    for limits in (
        ArchLimits("sm_75", 64 << 10, 64 << 10, 40, has_bulk_copy=False),
        ArchLimits("sm_80", 163 << 10, 164 << 10, 108, has_bulk_copy=False),
        ArchLimits("sm_86", 99 << 10, 100 << 10, 84, has_bulk_copy=False),
        ArchLimits("sm_89", 99 << 10, 100 << 10, 142, has_bulk_copy=False),
        ArchLimits("sm_90", 227 << 10, 228 << 10, 132, has_bulk_copy=True),
        ArchLimits("sm_100", 227 << 10, 228 << 10, 148, has_bulk_copy=True),
        ArchLimits("sm_120", 99 << 10, 100 << 10, 188, has_bulk_copy=True),
    )
}


def arch_limits(arch: str) -> ArchLimits:
    """Return the limits of an architecture listed in `ARCHS`.

    Raises:
        UnsupportedDeviceError: the architecture is not listed.
    """
    limits = ARCHS.get(arch)
    if limits is None:
        raise UnsupportedDeviceError(
            message("arch", got=repr(arch), allowed=", ".join(ARCHS), do="Name one of these architectures.")
        )
    return limits
