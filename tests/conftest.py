"""Fixtures of the whole suite: shared data, and a quiet CPU-only JAX."""

import os
import pathlib

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile more than they compute.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """Folder of fixtures that are not ours to ship; skips where it is absent."""
  path = ROOT.parent / "shared" / "data"
  if not path.is_dir():
    pytest.skip(f"the shared fixtures are not at {path}")
  return path
