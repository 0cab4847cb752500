"""The layer of train_hyena_lm.py in JAX: train it for a few steps, and compare its gradients with jax.numpy's.

The whole step is compiled by `jax.jit`, the convolution and its gradients with it; on a GPU they are our kernels.

    python examples/hyena_jax.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import click
import jax
import jax.numpy as jnp
import numpy as np
from stdlib_text import random_windows, read_corpus

from fftconv_cupy.jax import fftconv

BYTES = 256
SHORT_TAPS = 3
PERIODS = 16
HIDDEN = 64
TOLERANCE = 1e-5
RATE, DECAYS, SMALL = 4e-3, (0.9, 0.98), 1e-8  # of Adam

Parameters = dict[str, jax.Array]
Convolve = Callable[..., jax.Array]


def jnp_fftconv(u: jax.Array, k: jax.Array, *, in_gate: jax.Array, out_gate: jax.Array, skip: jax.Array) -> jax.Array:
    """Compute what `fftconv` does in its causal mode, by jax.numpy."""
    points = u.shape[-1]
    x = in_gate * u
    product = jnp.fft.rfft(x, 2 * points) * jnp.fft.rfft(k, 2 * points)
    return out_gate * (jnp.fft.irfft(product, 2 * points)[..., :points] + skip[:, None] * x)


def initial(width: int, seed: int) -> Parameters:
    """Return the parameters of an embedding, one layer and a read-out, each of the size that its inputs call for."""
    shapes = {
        "embedding": (BYTES, width),
        "project": (width, 3 * width),
        "short": (3 * width, SHORT_TAPS),
        "first": (2 * PERIODS, HIDDEN),
        "second": (HIDDEN, HIDDEN),
        "last": (HIDDEN, width),
        "mix": (width, width),
        "readout": (width, BYTES),
    }
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    inputs = {name: shape[0] for name, shape in shapes.items()} | {"embedding": 1, "short": SHORT_TAPS}
    return {"skip": jnp.ones(width)} | {
        name: jax.random.normal(key, shape) / inputs[name] ** 0.5
        for (name, shape), key in zip(shapes.items(), keys, strict=True)
    }


def implicit_filter(parameters: Parameters, taps: int) -> jax.Array:
    """Return filters (channels, taps), made from the lag by a small network, under windows of different reach."""
    lag = jnp.arange(taps)[:, None]
    angle = 2 * jnp.pi * lag / jnp.geomspace(2, 2 * taps, PERIODS)
    position = jnp.concatenate((jnp.cos(angle), jnp.sin(angle)), axis=1)
    hidden = jnp.sin(jnp.sin(2 * position @ parameters["first"]) @ parameters["second"])
    channels = parameters["last"].shape[1]
    window = jnp.exp(-lag.T / jnp.geomspace(2, taps, channels)[:, None])
    return (hidden @ parameters["last"]).T * window / jnp.linalg.norm(window, axis=1, keepdims=True)


def hyena_operator(parameters: Parameters, x: jax.Array, convolve: Convolve) -> jax.Array:
    """Map (B, L, width) to the same shape; no point sees a later one."""
    points = x.shape[1]
    rows = jnp.swapaxes(x @ parameters["project"], 1, 2)  # (B, 3 * width, L)
    delayed = (jnp.pad(rows, ((0, 0), (0, 0), (lag, 0)))[..., :points] for lag in range(SHORT_TAPS))
    rows = sum(parameters["short"][:, lag, None] * row for lag, row in enumerate(delayed))
    value, in_gate, out_gate = jnp.split(rows, 3, axis=1)
    k = implicit_filter(parameters, points)
    y = convolve(value, k, in_gate=in_gate, out_gate=out_gate, skip=parameters["skip"])
    return jnp.swapaxes(y, 1, 2) @ parameters["mix"]


def loss_of(parameters: Parameters, windows: jax.Array, convolve: Convolve) -> jax.Array:
    """Return the mean loss, in nats a byte, of predicting each byte of windows (B, L + 1) but the first."""
    x = parameters["embedding"][windows[:, :-1]]
    x = x + hyena_operator(parameters, x, convolve)
    chances = jax.nn.log_softmax(x @ parameters["readout"])
    return -jnp.take_along_axis(chances, windows[:, 1:, None], axis=2).mean()


@jax.jit
def adam_step(
    parameters: Parameters, moments: tuple[Parameters, Parameters], step: int, windows: jax.Array
) -> tuple[Parameters, tuple[Parameters, Parameters], jax.Array]:
    """Return parameters and moments after one step of Adam, and the loss before it."""
    loss, gradient = jax.value_and_grad(partial(loss_of, convolve=fftconv))(parameters, windows)
    first = jax.tree.map(lambda m, g: m + (1 - DECAYS[0]) * (g - m), moments[0], gradient)
    second = jax.tree.map(lambda v, g: v + (1 - DECAYS[1]) * (g**2 - v), moments[1], gradient)
    scales = [1 / (1 - decay**step) for decay in DECAYS]  # the moments begin at zero

    def moved(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        return p - RATE * scales[0] * m / (jnp.sqrt(scales[1] * v) + SMALL)

    return jax.tree.map(moved, parameters, first, second), (first, second), loss


def disagreement(parameters: Parameters, windows: jax.Array) -> tuple[str, float]:
    """Return which parameter's gradient is the farthest from that through jax.numpy, and by how much of its norm."""
    ours, theirs = (
        jax.jit(jax.grad(partial(loss_of, convolve=convolve)))(parameters, windows)
        for convolve in (fftconv, jnp_fftconv)
    )
    errors = {name: float(jnp.linalg.norm(ours[name] - g) / jnp.linalg.norm(g)) for name, g in theirs.items()}
    worst = max(errors, key=lambda name: errors[name])
    return worst, errors[worst]


@click.command()
@click.option("--steps", type=click.IntRange(1), default=50, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True)
@click.option("--length", type=click.IntRange(2), default=256, show_default=True, help="Bytes of a text.")
@click.option("--width", type=click.IntRange(1), default=64, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(steps: int, batch: int, length: int, width: int, seed: int) -> None:
    """Train the layer on the standard library's source; exits with 1 where a gradient disagrees with jax.numpy's."""
    jax.config.update("jax_default_matmul_precision", "highest")  # GPUs round the inputs to 11 bits by default
    corpus, rng = read_corpus(), np.random.default_rng(seed)
    parameters = initial(width, seed)
    moments = (jax.tree.map(jnp.zeros_like, parameters),) * 2
    worst, error = disagreement(parameters, jnp.asarray(random_windows(corpus.train, length, batch, rng)))
    losses = []
    with click.progressbar(range(1, steps + 1), label=f"JAX on {jax.default_backend()}") as numbers:
        for number in numbers:
            windows = jnp.asarray(random_windows(corpus.train, length, batch, rng))
            parameters, moments, loss = adam_step(parameters, moments, number, windows)
            losses.append(float(loss))
    print(f"loss in nats a byte: {losses[0]:.3f} at step 1, {losses[-1]:.3f} at step {steps}")
    agrees = error <= TOLERANCE
    print(f"gradient of {worst}, the worst: off jax.numpy's by {error:.1e}, {'fine' if agrees else 'TOO MUCH'}")
    sys.exit(0 if agrees else 1)


if __name__ == "__main__":
    main()
