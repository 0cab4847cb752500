from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

import fftconv_cupy
from fftconv_cupy.archs import ARCHS, ArchLimits, arch_limits
from fftconv_cupy.blocks import BLOCK_CONFIGS, BlockConfig
from fftconv_cupy.errors import InvalidArgumentError, UnsupportedDeviceError, UnsupportedProblemError
from fftconv_cupy.kernel_matrix import iter_kernels
from fftconv_cupy.params import FwdParams, packer
from fftconv_cupy.plan import WORKSPACE_LIMIT, block_config, filter_lags, make_plan
from fftconv_cupy.problem import MODES, Problem, Wanted, make_problem, needed_fft_size
from fftconv_cupy.reference import fftconv_reference
from fftconv_cupy.tables import twiddle_table
from fftconv_cupy.triple_blocks import TRIPLE_CONFIGS
from fftconv_cupy.vjp_plan import make_vjp_plan

SM_90 = ARCHS["sm_90"]


def problem(mode: str, seqlen: int, filter_len: int | None = None, **overrides: object) -> Problem:
    values = {"batch": 4, "channels": 3, "filter_len": seqlen if filter_len is None else filter_len, **overrides}
    return make_problem(mode, seqlen=seqlen, **values)


@pytest.mark.parametrize(
    ("arch", "linear", "circular"),
    [
        ("sm_75", 8192, 4096),
        ("sm_80", 32768, 16384),
        ("sm_86", 16384, 8192),
        ("sm_89", 16384, 8192),
        ("sm_90", 32768, 16384),
        ("sm_100", 32768, 16384),
        ("sm_120", 16384, 8192),
    ],
)
def test_each_arch_reaches_its_largest_size_and_no_further(arch: str, linear: int, circular: int) -> None:
    limits = ARCHS[arch]
    assert make_plan(problem("causal", linear // 2), limits).config.points == linear // 2
    assert make_plan(problem("circular", circular), limits).config.points == circular
    for mode, seqlen in (("causal", linear // 2 + 1), ("full", linear // 2 + 1), ("circular", circular + 1)):
        with pytest.raises(UnsupportedProblemError, match=rf"{arch} up to {linear}.*Shorten"):
            make_plan(problem(mode, seqlen), limits)
    for mode in MODES:
        with pytest.raises(UnsupportedProblemError, match="33554432"):
            make_plan(problem(mode, 8, fft_size=1 << 25), limits)


def test_unlisted_limits_are_planned_by_their_numbers() -> None:
    limits = ArchLimits("sm_87", 163 << 10, 164 << 10, 16, has_bulk_copy=False)
    assert make_plan(problem("causal", 16384), limits).config.points == 16384


def test_axes_that_indices_cannot_hold_are_refused() -> None:
    with pytest.raises(UnsupportedProblemError, match="below 2\\^30"):
        make_plan(problem("causal", 8, batch=1 << 30), SM_90)


def test_a_prefetch_never_costs_a_block() -> None:
    made = make_plan(problem("causal", 4096, batch=64), SM_90)
    assert made.shared_bytes > made.config.exchange_bytes
    assert made.config.min_blocks * (made.shared_bytes + 1024) <= SM_90.multiprocessor_shared_bytes
    assert make_plan(problem("causal", 4096, batch=64), ARCHS["sm_120"]).shared_bytes == made.config.exchange_bytes


def test_unknown_arch_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedDeviceError, match="sm_75, sm_80"):
        arch_limits("sm_70")


@pytest.mark.parametrize("config", BLOCK_CONFIGS.values(), ids=lambda c: str(c.points))
def test_block_configs_are_whole(config: BlockConfig) -> None:
    assert 1 << sum(config.log2_radices) == config.points
    assert config.threads % 32 == 0
    assert config.threads <= 512


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_fits_its_arch_and_is_yielded_once(arch: str) -> None:
    kernels = list(iter_kernels(arch))
    assert len({kernel.spec for kernel in kernels}) == len(kernels) > 100
    assert max(kernel.shared_bytes for kernel in kernels) <= ARCHS[arch].block_shared_bytes


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("mode", MODES)
def test_plans_name_only_kernels_of_the_compile_matrix(arch: str, mode: str) -> None:
    known = {kernel.spec for kernel in iter_kernels(arch)}
    lengths = [1, 2, 100, 127, 128, 1000, 2048, 4096]
    options = [{}, {"in_gate": True}, {"in_gate": True, "out_gate": True}, {"skip": True}]
    for seqlen, filter_len, flags in itertools.product(lengths, [1, 30, 3000], options):
        for is_vector, is_bulk in ((True, True), (True, False), (False, False)):
            planned = problem(mode, seqlen, filter_len, **flags)
            made = make_plan(planned, ARCHS[arch], is_vector=is_vector, is_bulk=is_bulk)
            assert made.forward in known
            assert made.filter in known
            for wanted in (Wanted(u=True, k=True), Wanted(k=True), Wanted(in_gate=planned.in_gate, u=True)):
                assert {
                    spec for spec, _ in make_vjp_plan(planned, wanted, ARCHS[arch], is_vector=is_vector).kernels
                } <= known


@pytest.mark.parametrize("fft_size", [2 * points for points in BLOCK_CONFIGS])
@pytest.mark.parametrize("channels", [1, 7, 768, 65536])
@pytest.mark.parametrize("batch", [1, 3, 64, 5000])
def test_workspace_of_gradients_stays_within_the_limit(fft_size: int, channels: int, batch: int) -> None:
    for shared in (False, True):
        convolution = problem("causal", fft_size // 2, batch=batch, channels=channels, shared_filter=shared, skip=True)
        made = make_vjp_plan(convolution, Wanted(u=True, k=True, skip=True), SM_90)
        assert made.workspace_bytes <= WORKSPACE_LIMIT or made.channel_group == 1
        assert made.workspace_bytes <= 64 << 20
        chunks = made.chunks
        assert chunks.group_chunks * chunks.chunk_steps >= chunks.group_steps
        assert (chunks.group_chunks - 1) * chunks.chunk_steps < chunks.group_steps
        assert chunks.groups * made.group_channels >= made.channel_group
        assert chunks.blocks <= (made.resident_blocks if made.backward_config.cluster_blocks == 1 else chunks.count)


def test_printing_a_plan_of_gradients_tells_where_everything_is_held() -> None:
    everything = Wanted(u=True, k=True, in_gate=True, out_gate=True)
    gated = problem("causal", 4096, batch=64, channels=768, in_gate=True, out_gate=True)
    text = str(make_vjp_plan(gated, everything, SM_90))
    for part in ("4 a row of 4096 complex points", "in shared memory meanwhile, in float32", "in registers, float32"):
        assert part in text
    long = problem("causal", 16384, batch=16, channels=768)
    text = str(make_vjp_plan(long, Wanted(u=True, k=True), SM_90))
    for part in (
        "= 2 x 16 x 16 x 32",
        "a cluster of 2 shares a row",
        "in registers, float32",
        "clusters, ",
        "chunks of",
    ):
        assert part in text
    text = str(make_vjp_plan(long, Wanted(u=True, k=True), ARCHS["sm_80"]))
    for part in ("3 a row of 16384", "3 of 16 parts", "in L2, by the threads that own it", "384 KB a row"):
        assert part in text
    assert "nothing is summed" in str(make_vjp_plan(gated, Wanted(u=True), SM_90))
    assert "one filter for all channels" in str(
        make_vjp_plan(problem("same", 100, shared_filter=True), Wanted(k=True), SM_90)
    )


@pytest.mark.parametrize("fft_size", [2 * points for points in BLOCK_CONFIGS])
@pytest.mark.parametrize("channels", [1, 7, 768, 65536, 200_000])
def test_workspace_stays_within_the_limit(fft_size: int, channels: int) -> None:
    made = make_plan(problem("causal", fft_size // 2, batch=2, channels=channels), SM_90)
    assert made.workspace_bytes <= WORKSPACE_LIMIT
    groups = -(-channels // made.channel_group)
    assert made.launches == 2 * groups
    assert make_plan(made.problem, SM_90, is_prepared=True).launches == 1


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 16, 17, 100_000])
@pytest.mark.parametrize("channels", [1, 3, 65_537, 1_000_000])
@pytest.mark.parametrize(("mode", "seqlen"), [("causal", 100), ("circular", 128), ("causal", 8192), ("circular", 8192)])
def test_the_grid_covers_every_row(batch: int, channels: int, mode: str, seqlen: int) -> None:
    made = make_plan(problem(mode, seqlen, batch=batch, channels=channels), SM_90)
    slots = 1 << made.log2_batch_slots
    jobs = (batch + 1) // 2 if made.strategy == "paired" else batch
    group = made.channel_group
    turns, block_step, turn_channels, turn_jobs = made.turns
    if dict(made.forward.defines)["FFTCONV_HAS_PREFETCH"] == "1":
        assert made.grid[1:] == (1, 1)
        assert 0 <= turn_jobs < jobs
        turn_step = turn_channels * jobs + turn_jobs
        # Either the turns of a block or the blocks of a turn lie side by side, and together they are all jobs.
        assert (block_step, turn_step) in ((turns, 1), (1, made.grid[0])) or turns == 1
        assert made.grid[0] * turns >= jobs * group > (made.grid[0] - 1) * turns
        return
    assert turns == 1
    assert made.grid[0] * slots >= jobs > (made.grid[0] - 1) * slots
    assert made.grid[1] * made.grid[2] * (made.config.rows // slots) >= group
    assert made.grid[1] <= 65535
    assert made.grid[2] <= 65535


@pytest.mark.parametrize("mode", MODES)
def test_the_transform_is_the_smallest_that_serves(mode: str) -> None:
    for seqlen, filter_len in itertools.product([100, 128, 129, 255, 1000, 4096], [1, 2, 129, 1000, 4096]):
        planned = problem(mode, seqlen, filter_len)
        strategy, config = block_config(planned, SM_90)
        if strategy == "paired":
            assert config.points == planned.fft_size
        else:
            least = seqlen if mode == "circular" else (needed_fft_size(mode, seqlen, filter_len) + 1) // 2
            assert config.points == min(points for points in (*BLOCK_CONFIGS, *TRIPLE_CONFIGS) if points >= least)


def test_a_larger_fft_size_changes_nothing() -> None:
    given = make_plan(problem("causal", 300, fft_size=16384), SM_90)
    assert given.forward == make_plan(problem("causal", 300), SM_90).forward


def ring_filter(planned: Problem, taps: np.ndarray) -> tuple[np.ndarray, int]:
    """The filter as the kernel places it, by the words of FilterParams: real ring positions and the ring's sign."""
    strategy, config = block_config(planned, SM_90)
    size, sign = (config.points, 1) if strategy == "paired" else (2 * config.points, -1)
    lags = filter_lags(planned, strategy)

    def tap(lag: int) -> float:
        index = lag + (lags.negative_shift if lag < 0 else lags.shift)
        if lags.period:
            return float(taps[index :: lags.period].sum())
        return float(taps[index]) if index < len(taps) else 0.0

    placed = np.zeros(size)
    for lag in range(lags.positive):
        placed[lag] += tap(lag)
    for lag in range(1, lags.negative + 1):
        placed[size - lag] += sign * tap(-lag)
    return placed, sign


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seqlen", [1, 2, 7, 100, 128, 130, 200])
@pytest.mark.parametrize("filter_len", [1, 2, 6, 99, 128, 301, 700])
def test_filter_lags_give_the_convolution_in_the_ring(mode: str, seqlen: int, filter_len: int) -> None:
    generator = np.random.default_rng(seqlen * 1000 + filter_len)
    for fft_size in (None, 256) if mode == "circular" else (None,):
        planned = problem(mode, seqlen, filter_len, fft_size=fft_size)
        u, k = generator.standard_normal((1, 1, seqlen)), generator.standard_normal((1, filter_len))
        placed, sign = ring_filter(planned, k[0])
        size = len(placed)
        x = np.zeros(size)
        x[:seqlen] = u[0, 0]
        full = np.convolve(x, placed)
        ring = full[:size].copy()
        ring[: size - 1] += sign * full[size:]
        expected = fftconv_reference(u, k, mode=mode, fft_size=fft_size)[0, 0]
        np.testing.assert_allclose(ring[: planned.out_len], expected, atol=1e-10)


def test_printing_tells_the_whole_story() -> None:
    made = make_plan(problem("causal", 16384, batch=16, channels=768, in_gate=True, skip=True), SM_90)
    text = str(made)
    for part in ("causal", "in_gate", "skip", "16384 complex points = 16 x 32 x 32", "512 threads", "launches        4",
                 f"{made.shared_bytes} bytes", f"{made.workspace_bytes} bytes", "2 groups of channels"):  # fmt: skip
        assert part in text
    assert "paired" in str(make_plan(problem("circular", 4096), SM_90))
    assert "(filter prepared)" in str(make_plan(problem("same", 50, 7), SM_90, is_prepared=True))


def test_an_unknown_fft_size_names_those_there_are() -> None:
    with pytest.raises(InvalidArgumentError, match=r"got 100;.*128, 256"):
        list(iter_kernels("sm_90", fft_sizes=[100]))


@pytest.mark.parametrize("is_paired", [False, True])
@pytest.mark.parametrize("config", BLOCK_CONFIGS.values(), ids=lambda c: str(c.points))
def test_twiddles_are_roots_of_unity_rounded_once(config: BlockConfig, is_paired: bool) -> None:
    table = twiddle_table(config, is_paired=is_paired).astype(np.float64)
    np.testing.assert_allclose(np.hypot(table[::2], table[1::2]), 1, atol=1e-7)
    sizes = [3 << (log2 - 2 + sum(config.log2_radices[:i])) for i, log2 in enumerate(config.log2_radices) if i]
    assert table.size == 4 * sum(sizes)  # four floats a float4, as Layout::forward_table counts


def test_the_public_plan_tells_of_gradients_too() -> None:
    sizes = {"batch": 3, "channels": 5, "seqlen": 101, "filter_len": 7, "arch": "sm_80"}
    made = fftconv_cupy.plan(**sizes, in_gate=True, wrt=("k", "in_gate"))
    assert made.wanted == Wanted(k=True, in_gate=True)
    assert not made.variant.is_vector
    assert fftconv_cupy.plan(**sizes, prepared=True, wrt="u").launches == 1
    with pytest.raises(InvalidArgumentError, match="'skip', which was not given"):
        fftconv_cupy.plan(**sizes, wrt=("skip",))
    with pytest.raises(InvalidArgumentError, match="a prepared filter"):
        fftconv_cupy.plan(**sizes, prepared=True, wrt=("k",))


def test_packed_arguments_are_those_of_the_structure() -> None:
    packed = packer(FwdParams)
    assert packed.size == ctypes.sizeof(FwdParams)
    values = list(range(1, len(FwdParams._fields_) + 1))
    filled = FwdParams()
    packed.pack_into(filled, 0, *values)
    assert bytes(filled) == bytes(FwdParams(*values))
