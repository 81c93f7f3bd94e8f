"""A cascade: one run draws, others enlarge what it has drawn.

`Cascade.from_model_dirs([base, larger, largest]).generate(texts)` draws small
pictures and enlarges them stage by stage, each by a run of its own. Between the
stages pictures are what a PNG holds, so that a stage's file, enlarged another
day by `upscale`, gives the picture that the cascade gave. A picture depends on
its own caption, seed and samplers alone.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from byt5_diffusion import config, inference, telemetry
from byt5_diffusion.data import images

Stage = inference.Generator | inference.Upscaler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cascade:
  """Stages that fit together.

  Attributes:
    base: draws; None: the small pictures come from elsewhere.
    upscalers: each enlarges to the size that the next one takes.
  """

  base: inference.Generator | None = None
  upscalers: tuple[inference.Upscaler, ...] = ()

  def __post_init__(self) -> None:
    stages = [x for x in (self.base, *self.upscalers) if x is not None]
    if not stages:
      raise ValueError("a cascade needs a stage.")
    check_chain({f"stage {i}": x.model for i, x in enumerate(stages)})

  @classmethod
  def from_model_dirs(
    cls,
    model_dirs: Sequence[str],
    *,
    has_base: bool = True,
    step: int | None = None,
    use_ema: bool = True,
    trust_config: bool = False,
    batch_size: int = 8,
  ) -> Self:
    """Reads the runs' folders; runs no code of theirs.

    Args:
      model_dirs: MODEL_DIRs in order, the one that draws first.
      has_base: False: the first one enlarges as the others do.
      step: checkpoint of the one that draws; None: the last committed one.
      use_ema: averaged parameters, where a run kept them.
      trust_config: allow model.gin to name code outside this package.
      batch_size: pictures at a time, at every stage.

    Raises:
      config.ConfigError: a model.gin is missing, broken or not allowed.
      checkpoints.CheckpointError: no readable checkpoint of a model.
      ValueError: a run that cannot do what its place asks; sizes that do not
        fit, said before any weight is read.
    """
    if not model_dirs:
      raise ValueError("a cascade needs a run's folder.")
    telemetry.enable_compilation_cache()
    models = {}
    for i, folder in enumerate(model_dirs):
      model = config.load_model_gin(
        pathlib.Path(folder) / "model.gin", trust_config=trust_config
      )
      draws = has_base and not i
      kind = inference.Generator if draws else inference.Upscaler
      kind.check(model, folder)
      # A folder may be there twice: sizes that do not fit are said below.
      models[f"{folder} (stage {i})" if folder in models else folder] = model
    check_chain(models)
    base, upscalers = None, []
    for i, (folder, model) in enumerate(
      zip(model_dirs, models.values(), strict=True)
    ):
      options: dict[str, Any] = {"use_ema": use_ema, "batch_size": batch_size}
      if has_base and not i:
        base = inference.Generator.restore(model, folder, step=step, **options)
      else:
        upscalers.append(inference.Upscaler.restore(model, folder, **options))
    return cls(base=base, upscalers=tuple(upscalers))

  @property
  def sizes(self) -> list[tuple[int, int]]:
    """(H, W) of what each stage makes."""
    return [x.size for x in (self.base, *self.upscalers) if x is not None]

  @property
  def low_size(self) -> tuple[int, int]:
    """(h, w) of the pictures that `upscale` takes.

    Raises:
      ValueError: no stage enlarges.
    """
    if not self.upscalers:
      raise ValueError("no stage of this cascade enlarges pictures.")
    return self.upscalers[0].low_size

  def generate(self, texts: Sequence[str], **options: Any) -> np.ndarray:
    """Draws one picture per text: uint8 [N, H, W, 3]; options: `stages`."""
    *_, last = self.stages(texts, **options)
    return last

  def upscale(
    self, pictures: np.ndarray, texts: Sequence[str], **options: Any
  ) -> np.ndarray:
    """Enlarges pictures uint8 [N, h, w, 3] that show texts: [N, H, W, 3].

    Args:
      pictures: of low_size; `fit` makes any picture that.
      texts: one each.
      **options: of `stages`.
    """
    *_, last = self.stages(texts, pictures=pictures, **options)
    return last

  def fit(self, picture: np.ndarray) -> np.ndarray:
    """A picture of any size, whole and centred on white, in low_size."""
    height, width = self.low_size
    return images.fit(picture, height, width)

  def stages(
    self,
    texts: Sequence[str],
    *,
    pictures: Sequence[np.ndarray] | np.ndarray | None = None,
    seed: int = 0,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
    augmentation: float | None = None,
    upscale_guidance_scale: float | None = None,
    upscale_num_steps: int | None = None,
    progress: bool = False,
  ) -> Iterator[np.ndarray]:
    """What each stage makes, uint8 [N, H, W, 3]; small ones come first.

    Args:
      texts: one per picture.
      pictures: [N, h, w, 3] to begin with; None: the base draws them.
      seed: of the noise, of which each stage has its own.
      guidance_scale, num_steps: of what draws; None: the model's.
      augmentation: level of the noise that small pictures get before they are
        enlarged; None: each model's.
      upscale_guidance_scale, upscale_num_steps: of what enlarges.
      progress: show a bar per stage.

    Raises:
      ValueError: no pictures and no base, a level that a model has not learnt.
    """
    # What the last stage would refuse is said before the first one draws.
    for upscaler in self.upscalers:
      inference.check_request(
        texts,
        seed,
        upscale_num_steps,
        guidance_scale=upscale_guidance_scale,
      )
      upscaler.check_augmentation(augmentation)
    if pictures is None:
      if self.base is None:
        raise ValueError("no stage of this cascade draws: pass pictures.")
      pictures = self.base.generate(
        texts,
        seed=seed,
        guidance_scale=guidance_scale,
        num_steps=num_steps,
        progress=progress,
      )
      yield pictures
    pictures = np.asarray(pictures)
    for stage, upscaler in enumerate(self.upscalers, 1):
      pictures = upscaler.upscale(
        pictures,
        texts,
        seed=seed,
        stage=stage,
        augmentation=augmentation,
        guidance_scale=upscale_guidance_scale,
        num_steps=upscale_num_steps,
        progress=progress,
      )
      yield pictures


def check_chain(models: dict[str, Any]) -> None:
  """Raises ValueError unless each model takes what the one before gives.

  Args:
    models: {what to call it: model}, in order; all but the first enlarge.
  """
  for (before, drawn), (name, model) in itertools.pairwise(models.items()):
    given, made = inference.size_of(drawn), inference.size_of(model)
    wanted = tuple(side // model.factor for side in made)
    if given != wanted:
      raise ValueError(
        f"{before} gives pictures of {inference.shown(given)} pixels, but "
        f"{name} enlarges {inference.shown(wanted)} to "
        f"{inference.shown(made)}: each stage must take what the one before "
        "gives."
      )
