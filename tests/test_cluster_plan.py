"""Plans of rows that the blocks of a cluster share: where there are any, workspace, and what is printed."""

from __future__ import annotations

import itertools

import pytest

from fftconv_cupy import plan
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.blocks import COMPLEX_BYTES, SYSTEM_BYTES
from fftconv_cupy.cluster_blocks import (
    CLUSTER_CONFIGS,
    GRADIENT_CLUSTERS,
    fitting_cluster_configs,
    fitting_gradient_clusters,
    shared_bytes,
)
from fftconv_cupy.cluster_plan import ClusterPlan, cluster_config, make_cluster_plan
from fftconv_cupy.cluster_vjp_plan import ClusterVjpPlan, make_cluster_vjp_plan
from fftconv_cupy.kernel_matrix import iter_kernels
from fftconv_cupy.long_plan import LongPlan, make_long_plan
from fftconv_cupy.long_vjp_plan import LongVjpPlan
from fftconv_cupy.plan import max_points
from fftconv_cupy.problem import Wanted, make_problem

SHAPES = ((1, 1), (64, 768), (1, 4096), (3, 5), (1000, 1))


@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
@pytest.mark.parametrize("points", CLUSTER_CONFIGS)
def test_configurations_fit_the_gpu(arch: str, points: int) -> None:
    limits, config = ARCHS[arch], CLUSTER_CONFIGS[points]
    assert config in fitting_cluster_configs(limits)
    assert sum(config.log2_radices) == points.bit_length() - 1
    assert 1 << config.log2_radices[0] == config.cluster_blocks <= 8  # what every GPU with clusters can do
    assert config.log2_radices[1] == 4
    assert config.points // config.cluster_blocks <= max_points(limits)
    needed = config.min_blocks * (shared_bytes(config) + SYSTEM_BYTES)
    assert needed <= limits.multiprocessor_shared_bytes
    made = plan(2, 3, points, points, arch=arch)
    assert isinstance(made, ClusterPlan)
    assert made.config is config


@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
@pytest.mark.parametrize("points", GRADIENT_CLUSTERS)
def test_configurations_of_gradients_fit_the_gpu(arch: str, points: int) -> None:
    limits, config = ARCHS[arch], GRADIENT_CLUSTERS[points]
    assert config in fitting_gradient_clusters(limits)
    assert sum(config.log2_radices) == points.bit_length() - 1
    assert 1 << config.log2_radices[0] == config.cluster_blocks <= 8
    assert config.log2_radices[1] == 4
    for wrt in ("u", "k", None):
        made = plan(2, 3, points, points, arch=arch, wrt=wrt or ("u", "k", "in_gate"), in_gate=True)
        assert isinstance(made, ClusterVjpPlan)
        assert made.config is config
        assert config.backward_blocks * (made.shared_bytes + SYSTEM_BYTES) <= limits.multiprocessor_shared_bytes
        known = {kernel.spec: kernel for kernel in iter_kernels(arch, fft_sizes=[2 * points])}
        for spec, shared in made.kernels:
            if spec in known:
                assert known[spec].shared_bytes == shared
        assert made.backward in known
        assert made.filter in known
        assert made.filter_backward in known


def test_gradients_keep_the_limit_of_the_workspace_and_fill_the_gpu() -> None:
    wanted = Wanted(u=True, k=True, skip=True)
    for points, (batch, channels), is_shared in itertools.product(GRADIENT_CLUSTERS, SHAPES, (False, True)):
        lengths = {"seqlen": points, "filter_len": points, "shared_filter": is_shared, "skip": True}
        problem = make_problem("causal", batch=batch, channels=channels, **lengths)
        made = make_cluster_vjp_plan(problem, wanted, ARCHS["sm_90"])
        assert made.workspace_bytes + 13 * points <= 64 << 20
        assert made.filters.config.points == made.sums_back.config.points == points
        assert made.sums_back.schedule.channels == made.sums_back.schedule.sum_slots == made.channel_group
        assert made.sums_back.schedule.chains == (1 if made.has_reduce else made.chunks.group_chunks)
        assert make_cluster_vjp_plan(problem, Wanted(u=True), ARCHS["sm_90"], is_prepared=True).workspace_bytes == 0
        waves = -(-made.chunks.count // made.resident_blocks)
        if (batch, channels) == (64, 768) and not is_shared:
            assert made.chunks.count > 0.9 * waves * made.resident_blocks


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_120"])
def test_other_gpus_go_through_l2(arch: str) -> None:
    """They have no clusters, or multiprocessors with too little shared memory."""
    for points in CLUSTER_CONFIGS:
        assert isinstance(plan(2, 3, points, points, arch=arch), LongPlan)
        assert isinstance(plan(2, 3, points, points, arch=arch, wrt=("u", "k")), LongVjpPlan)


def test_rows_that_fit_a_block_and_the_longest_have_no_cluster() -> None:
    limits = ARCHS["sm_90"]
    longest = max(CLUSTER_CONFIGS)
    for seqlen in (max_points(limits), longest + 1, 1 << 23):
        lengths = {"seqlen": seqlen, "filter_len": seqlen}
        assert cluster_config(make_problem("causal", batch=1, channels=1, **lengths), limits) is None
        with pytest.raises(ValueError, match="no cluster computes"):
            make_cluster_plan(make_problem("causal", batch=1, channels=1, **lengths), limits)
        with pytest.raises(ValueError, match="no cluster computes gradients"):
            make_cluster_vjp_plan(make_problem("causal", batch=1, channels=1, **lengths), Wanted(u=True), limits)


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
def test_the_workspace_keeps_its_limit(is_shared: bool) -> None:
    for points, (batch, channels) in itertools.product(CLUSTER_CONFIGS, SHAPES):
        lengths = {"seqlen": points, "filter_len": points, "shared_filter": is_shared}
        problem = make_problem("causal", batch=batch, channels=channels, **lengths)
        made = make_cluster_plan(problem, ARCHS["sm_90"])
        tables = 13 * points  # bytes, made once
        assert made.workspace_bytes + tables <= 64 << 20
        assert made.filter.config.points == points == make_long_plan(problem, ARCHS["sm_90"]).config.points
        assert made.channel_group * made.groups >= channels
        blocks, *rest = made.grid(made.channel_group)
        assert blocks // made.config.cluster_blocks * made.turns >= batch * made.channel_group
        assert rest == [1, 1]
        prepared = make_cluster_plan(problem, ARCHS["sm_90"], is_prepared=True)
        assert (prepared.workspace_bytes, prepared.launches) == (0, 1)
        if is_shared:
            assert made.spectrum_bytes == points * COMPLEX_BYTES


@pytest.mark.parametrize("points", CLUSTER_CONFIGS)
def test_few_rows_end_together(points: int) -> None:
    """As soon as they can where so many clusters run at a time, which take up to 8 rows each."""
    config = CLUSTER_CONFIGS[points]
    running = 123 * config.min_blocks // config.cluster_blocks  # seen on GPUs with 132 multiprocessors: a few more
    for rows in (1, running, running + 1, 64, 2 * running + 1, 5 * running, 8 * running):
        problem = make_problem("causal", batch=1, channels=rows, seqlen=points, filter_len=points)
        made = make_cluster_plan(problem, ARCHS["sm_90"], is_prepared=True)
        clusters = made.grid(rows)[0] // config.cluster_blocks
        assert -(-clusters // running) * made.turns == -(-rows // running)


def test_a_plan_tells_what_is_done() -> None:
    made = plan(64, 768, 32768, 32768, in_gate=True, arch="sm_90")
    assert isinstance(made, ClusterPlan)
    text = str(made)
    for part in ("cluster of 4 blocks", f"{made.turns} row(s) a cluster", "launches        8", "4 groups of channels"):
        assert part in text
    assert "element by" not in text
    assert "one by one" in str(plan(2, 3, 32767, 32768, arch="sm_90"))
    assert "imaginary part" in str(plan(2, 3, 40000, 20000, mode="full", arch="sm_90"))


def test_warming_up_compiles_for_every_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy", reason="warming up needs CuPy: pip install 'fftconv-cupy[cuda12]'")
    from fftconv_cupy import launch_cluster, launchers

    compiled = set()
    monkeypatch.setattr(launchers, "precompile", lambda spec, arch: compiled.add(spec))
    problem = make_problem("same", batch=4, channels=8, seqlen=30000, filter_len=36000)
    lines = launch_cluster.warm(problem, ["sm_90"])
    assert len(lines) == len(compiled) == 3
    for is_vector, is_prepared in itertools.product((True, False), (False, True)):
        made = make_cluster_plan(problem, ARCHS["sm_90"], is_vector=is_vector, is_prepared=is_prepared)
        assert {made.kernel, made.filter.kernel} <= compiled
