"""Faults in the kernels that share a row among the blocks of a cluster, as those of ``mutations.py``."""

from __future__ import annotations

from mutations import Mutation


def _cluster(name: str) -> tuple[str, ...]:
    return (f"tests/test_cluster_kernels.py::{name}[4-1024]",)


def _gradients(name: str) -> tuple[str, ...]:
    return (f"tests/test_cluster_vjp_kernels.py::{name}",)


CLUSTER_MUTATIONS = (
    Mutation(
        "spectrum order: points of another rank",
        "kernels/slices.cuh",
        "s_places + rank * kPitch;",
        "s_places;",
        _cluster("test_every_order_of_threads_gives_the_same_bits"),
    ),
    Mutation(
        "twiddle: powers of another node",
        "kernels/node_io.cuh",
        "kTurn * bit_reverse(rank.value, log2_of(kRanks));",
        "kTurn * rank.value;",
        _cluster("test_every_order_of_threads_gives_the_same_bits"),
    ),
    Mutation(
        "barrier: a place that is still read",
        "kernels/slices.cuh",
        "    mbarrier_wait(s_ready, parity);\n",
        "",
        _cluster("test_no_races"),
    ),
    Mutation(
        "spectrum order: rows of the filter's transform",
        "kernels/spectrum.cuh",
        "thread / Layout::kThreads * (Layout::kEpt / 2 * Layout::kThreads) + thread % Layout::kThreads;",
        "thread;",
        _cluster("test_every_order_of_threads_gives_the_same_bits"),
    ),
    Mutation(
        "channel stride: of a cluster's channel group",
        "fftconv_cupy/launch_cluster.py",
        "pointer and pointer + first * stride * item for",
        "pointer and pointer for",
        ("tests/test_cluster_kernels.py::test_groups_of_channels[own]",),
    ),
    Mutation(
        "gradient: start of a cluster",
        "kernels/sums.cuh",
        "sync_cluster();  // the mbarriers",
        "__syncthreads();  // the mbarriers",
        _gradients("test_no_races[all]"),
    ),
    Mutation(
        "gradient: parity of a cluster's exchanges",
        "kernels/slices.cuh",
        "parity ^= 1;",
        "parity = 1;",
        _gradients("test_no_races[all]"),
    ),
    Mutation(
        "gradient: places of a cluster's sums",
        "kernels/sums.cuh",
        "const int place = SpectrumTraits<Traits>::place(thread);",
        "const int place = thread;",
        _gradients("test_groups_of_channels[own]"),
    ),
    Mutation(
        "gradient: chunks of a cluster",
        "kernels/sums.cuh",
        "chunk = blockIdx.x / Node::kRanks;",
        "chunk = blockIdx.x;",
        _gradients("test_groups_of_channels[own]"),
    ),
    Mutation(
        "gradient: sums that another kernel has made",
        "fftconv_cupy/long_schedule.py",
        " or load.has_sums else 0",
        " else 0",
        _gradients("test_groups_of_channels[own]"),
    ),
)
