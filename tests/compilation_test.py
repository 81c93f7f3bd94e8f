"""One room for how code that runs once is compiled."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import pytest

import byt5_diffusion
from byt5_diffusion import compilation

PACKAGE = pathlib.Path(byt5_diffusion.__file__).parent


def test_xla_takes_the_options_and_counts_the_same() -> None:
  compiled = jax.jit(lambda x: 2 * x + 1).lower(jnp.ones(3))
  compiled = compiled.compile(compilation.quick_options())
  assert compiled(jnp.ones(3)).tolist() == [3, 3, 3]


@pytest.mark.parametrize(("backend", "some"), [("cpu", True), ("gpu", False)])
def test_accelerators_keep_their_defaults(
  monkeypatch: pytest.MonkeyPatch, backend: str, some: bool
) -> None:
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  assert bool(compilation.quick_options()) == some


def test_nobody_spells_xla_s_options_elsewhere() -> None:
  spelled = {
    path.stem
    for path in PACKAGE.rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text("utf-8")))
    if isinstance(node, ast.Constant)
    and str(node.value).startswith("xla_backend")
  }
  assert spelled == {"compilation"}
