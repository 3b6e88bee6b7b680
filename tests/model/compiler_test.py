"""The compiler options do what they are for."""

import re

import jax
import jax.numpy as jnp

from model import compiler_options
from model.layers import conv


def test_xla_keeps_its_own_convolutions_on_the_cpu():
    def normalised(x, kernel):
        y = conv(x, kernel)
        return y - y.mean((0, 1, 2), keepdims=True)

    arguments = jnp.ones((64, 14, 14, 32)), jnp.ones((3, 3, 32, 32))
    step = jax.jit(normalised, compiler_options=compiler_options())
    program = step.lower(*arguments).compile().as_text()
    entry = program[program.index("\nENTRY") :]
    assert re.search(r" convolution\(", entry)


def test_accelerators_keep_their_defaults(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options() == {}
