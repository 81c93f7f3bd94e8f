"""A finished run: its model with its weights, on one device.

What inference.Generator and reading.Reader have in common.
"""

import dataclasses
import pathlib
from typing import Any, Self

from byt5_diffusion import config, prompts, telemetry, variables

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """A model with its weights.

  Attributes:
    model: meets contract.Model, and what `check` asks besides.
    params: trained (by default averaged) parameters.
    frozen: the frozen networks, or None.
    step: training step of the weights.
    batch_size: examples at a time; shapes are compiled once for it.
    captions: how texts become the model's tokens.
  """

  model: Any
  params: PyTree
  frozen: PyTree = None
  step: int = 0
  batch_size: int = 8
  captions: prompts.Captions = prompts.BYT5_ONLY

  def __post_init__(self) -> None:
    if self.batch_size < 1:
      raise ValueError(f"batch_size={self.batch_size} must be positive.")

  @classmethod
  def check(cls, model: Any, where: str) -> None:
    """Raises ValueError, naming the folder, for a model that cannot do it."""

  @classmethod
  def from_model_dir(
    cls,
    model_dir: str,
    *,
    step: int | None = None,
    use_ema: bool = True,
    trust_config: bool = False,
    batch_size: int = 8,
  ) -> Self:
    """Reads model.gin and a checkpoint of a run; runs no code of the folder.

    Args:
      model_dir: a run's MODEL_DIR.
      step: checkpoint; None is the last committed one.
      use_ema: the averaged parameters, where the run kept them.
      trust_config: allow model.gin to name code outside this package.
      batch_size: examples per call of the network.

    Raises:
      config.ConfigError: model.gin is missing, broken or not allowed.
      checkpoints.CheckpointError: no readable checkpoint of this model.
      ValueError: the model cannot do what the class is for.
    """
    telemetry.enable_compilation_cache()
    model = config.load_model_gin(
      pathlib.Path(model_dir) / "model.gin", trust_config=trust_config
    )
    return cls.restore(
      model, model_dir, step=step, use_ema=use_ema, batch_size=batch_size
    )

  @classmethod
  def restore(
    cls,
    model: Any,
    model_dir: str,
    *,
    step: int | None = None,
    use_ema: bool = True,
    batch_size: int = 8,
  ) -> Self:
    """As from_model_dir, for a model that is built already."""
    cls.check(model, model_dir)
    captions = prompts.load(model, model_dir)
    params, frozen, step = variables.restore(model, model_dir, step, use_ema)
    return cls(
      model=model,
      params=params,
      frozen=frozen,
      step=step,
      batch_size=batch_size,
      captions=captions,
    )
