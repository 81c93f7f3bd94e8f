"""These tests run the real T5X (docs/t5x.md), or say why they can't."""

import pytest
import t5x_command


@pytest.fixture(scope="session", autouse=True)
def t5x() -> None:
  """Skips every test of this folder where T5X can't be imported."""
  done = t5x_command.run("-c", t5x_command.IMPORT, code=None)
  if done.returncode:
    reason = done.stderr.strip().splitlines()[-1]
    pytest.skip(f"T5X can't be imported ({reason}); see docs/t5x.md")
