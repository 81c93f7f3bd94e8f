"""How XLA compiles what runs once; telemetry keeps what runs again."""

import jax


def quick_options() -> dict[str, bool | int | str]:
  """XLA's options for code that runs once, or never: not worth optimizing.

  On the CPU optimizing takes far longer than such a run saves: a tiny UNet's
  initial values cost 20 s of compilation with it and 5 s without.

  Returns:
    For `jax.stages.Lowered.compile`; {} on other backends, where
    XLA's defaults stand.
  """
  if jax.default_backend() != "cpu":
    return {}
  return {"xla_backend_optimization_level": 0}
