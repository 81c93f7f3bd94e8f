"""Captions to images: a trained run's folder is all that is needed.

`Generator.from_model_dir(folder).generate(texts)` is the library's door,
`Upscaler` the one to what enlarges pictures (cascade.py joins them), `infer`
the program that draws a data set's captions. None imports TensorFlow. An image
depends on its caption, seed and sampler alone: not on the batch, its size, or
the order of the captions.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from PIL import Image

from byt5_diffusion import (
  contract,
  feature_converters,
  prompts,
  telemetry,
  trained,
)
from byt5_diffusion import partitioning as partitioning_lib
from byt5_diffusion.data import text

Array = jax.Array
Batch = Mapping[str, Any]
PyTree = Any


def image_rngs(seed: int, texts: Sequence[str], stage: int = 0) -> Array:
  """One key per image, from the seed, the caption and its repeat, [N].

  Each stage of a cascade has keys of its own; what draws is stage 0.
  """
  seen: dict[str, int] = {}
  words = np.zeros((len(texts), 2), np.uint32)
  for i, caption in enumerate(texts):
    repeat = seen.get(caption, 0)
    seen[caption] = repeat + 1
    digest = hashlib.blake2b(
      f"{repeat}:{caption}".encode("utf-8", "surrogatepass"), digest_size=8
    )
    words[i] = np.frombuffer(digest.digest(), "<u4")
  rng = jax.random.key(seed)
  rng = jax.random.fold_in(rng, stage) if stage else rng
  return contract.per_example_rngs(rng, jnp.asarray(words))


def make_sampler(model: Any) -> Callable[..., Array]:
  """A jitted draw(params, frozen, told, rngs) -> images [B, H, W, 3].

  told is text_tokens, or {batch key: tokens} where there are several.

  guidance_scale and num_steps are static keywords: one compilation each.
  """

  @functools.partial(jax.jit, static_argnames=("guidance_scale", "num_steps"))
  def draw(
    params: PyTree,
    frozen: PyTree,
    told: Array | Mapping[str, Array],
    rngs: Array,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
  ) -> Array:
    return model.sample(
      params,
      rngs=rngs,
      **_by_name(told),
      flax_mutables=frozen,
      guidance_scale=guidance_scale,
      num_steps=num_steps,
    )

  return draw


def make_upscaler(model: Any) -> Callable[..., Array]:
  """A jitted (params, frozen, images_low, told, rngs) -> images.

  told is as make_sampler's.

  guidance_scale and num_steps are static keywords, augmentation is a number.
  """

  @functools.partial(jax.jit, static_argnames=("guidance_scale", "num_steps"))
  def upscale(
    params: PyTree,
    frozen: PyTree,
    images_low: Array,
    told: Array | Mapping[str, Array],
    rngs: Array,
    augmentation: float | None = None,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
  ) -> Array:
    return model.upscale(
      params,
      images_low,
      rngs=rngs,
      **_by_name(told),
      flax_mutables=frozen,
      guidance_scale=guidance_scale,
      num_steps=num_steps,
      augmentation=augmentation,
    )

  return upscale


def _by_name(told: Any) -> Mapping[str, Array]:
  return told if isinstance(told, Mapping) else {"text_tokens": told}


class _Artist(trained.Trained):
  """What makes pictures, batch by batch."""

  @property
  def size(self) -> tuple[int, int]:
    """(H, W) of its pictures."""
    return size_of(self.model)

  def _in_batches(
    self,
    make: Callable[..., Array],
    columns: Sequence[Any],
    title: str | None,
    **options: Any,
  ) -> np.ndarray:
    """make(params, frozen, *columns, **options) of rows: uint8 [N, H, W, 3].

    Args:
      make: compiled once, for batch_size rows.
      columns: arrays [N, ...], or dicts of them.
      title: of a progress bar; None: none is shown.
      **options: for each call.
    """
    images = []
    count = len(jax.tree.leaves(columns)[0])
    starts = range(0, count, self.batch_size)
    for start in tqdm.tqdm(starts, title, disable=None if title else True):
      # The last batch is filled up: shapes are compiled once.
      rows = np.arange(start, start + self.batch_size) % count
      batch = make(
        self.params,
        self.frozen,
        *jax.tree.map(
          lambda column, rows=rows: jnp.asarray(column[rows]), tuple(columns)
        ),
        **options,
      )
      images.append(feature_converters.to_pixels(batch))
    return np.concatenate(images)[:count]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator(_Artist):
  """A model that draws, with its weights."""

  @classmethod
  def check(cls, model: Any, where: str) -> None:
    """Raises ValueError for a model that does not draw."""
    if isinstance(model, contract.Upscales):
      raise ValueError(
        f"{where}: this model enlarges pictures, but draws none of text alone: "
        "`byt5-diffusion generate` takes it as --upscale_dir."
      )
    if not isinstance(model, contract.Draws):
      raise ValueError(
        f"{where}: this model reads, but does not draw: `byt5-diffusion ocr` "
        "reads a picture by it."
      )

  @functools.cached_property
  def _draw(self) -> Callable[..., Array]:
    return make_sampler(self.model)

  def generate(
    self,
    texts: Sequence[str],
    *,
    seed: int = 0,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
    progress: bool = False,
  ) -> np.ndarray:
    """Draws one image per text: uint8 [N, H, W, 3].

    A text that is repeated is drawn differently each time; the same text and
    seed give the same image in any batch.
    """
    check_request(texts, seed, guidance_scale=guidance_scale)
    tokens = prompts.encode(self.model, self.captions, texts)
    return self.draw(
      tokens,
      image_rngs(seed, texts),
      guidance_scale=guidance_scale,
      num_steps=num_steps,
      progress=progress,
    )

  def draw(
    self,
    tokens: np.ndarray | Mapping[str, np.ndarray],
    rngs: Array,
    *,
    progress: bool = False,
    **options: Any,
  ) -> np.ndarray:
    """Draws text_tokens [N, L] with a key each: uint8 [N, H, W, 3].

    tokens may be {batch key: tokens [N, length]}, too.
    """
    title = "drawing" if progress else None
    return self._in_batches(self._draw, (tokens, rngs), title, **options)

  def predict(self, batch: Batch, rngs: Array) -> dict[str, np.ndarray]:
    """{"image"}: the captions of a data set's batch, drawn."""
    return {"image": self.draw(prompts.of_batch(batch), rngs)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upscaler(_Artist):
  """A model that enlarges pictures, with its weights."""

  @classmethod
  def check(cls, model: Any, where: str) -> None:
    """Raises ValueError for a model that does not enlarge."""
    if not isinstance(model, contract.Upscales):
      does = "draws texts" if isinstance(model, contract.Draws) else "reads"
      raise ValueError(
        f"{where}: this model {does}, but does not enlarge pictures. One that "
        "does is trained with models/super_resolution.gin."
      )

  @property
  def low_size(self) -> tuple[int, int]:
    """(h, w) of the pictures that it enlarges."""
    height, width = self.size
    return height // self.model.factor, width // self.model.factor

  @functools.cached_property
  def _upscale(self) -> Callable[..., Array]:
    return make_upscaler(self.model)

  @functools.cached_property
  def _downsample(self) -> Callable[[Any], Array]:
    return jax.jit(self.model.downsample)

  def upscale(
    self,
    pictures: np.ndarray,
    texts: Sequence[str],
    *,
    seed: int = 0,
    stage: int = 1,
    augmentation: float | None = None,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
    progress: bool = False,
  ) -> np.ndarray:
    """Enlarges pictures uint8 [N, h, w, 3] that show texts: [N, H, W, 3].

    Args:
      pictures: of low_size.
      texts: one each.
      seed: of the noise.
      stage: the place in a cascade, counted from 1: each has its own noise.
      augmentation: level of the noise that the pictures get first, at most the
        model's max_augmentation; None: the model's. More of it hides faults of
        the picture, less keeps closer to it.
      guidance_scale, num_steps: None: the model's.
      progress: show a bar.

    Raises:
      ValueError: another size or number of pictures, a level out of range.
    """
    check_request(texts, seed, guidance_scale=guidance_scale)
    if pictures.shape != (len(texts), *self.low_size, 3):
      raise ValueError(
        f"pictures of shape {pictures.shape}: {len(texts)} of "
        f"{shown(self.low_size)} pixels are wanted."
      )
    self.check_augmentation(augmentation)
    return self.draw(
      feature_converters.PIXELS[pictures],
      prompts.encode(self.model, self.captions, texts),
      image_rngs(seed, texts, stage),
      progress=progress,
      augmentation=augmentation,
      guidance_scale=guidance_scale,
      num_steps=num_steps,
    )

  def check_augmentation(self, augmentation: float | None) -> None:
    """Raises ValueError for a level that the model has not learnt."""
    most = self.model.max_augmentation
    if augmentation is not None and not 0 <= augmentation <= most:
      raise ValueError(
        f"{augmentation=} is not in 0 .. {most}, which the model has learnt."
      )

  def draw(
    self,
    images_low: np.ndarray,
    tokens: np.ndarray | Mapping[str, np.ndarray],
    rngs: Array,
    *,
    progress: bool = False,
    **options: Any,
  ) -> np.ndarray:
    """Enlarges [N, h, w, 3] in [-1, 1] with a key each: uint8 [N, H, W, 3]."""
    title = f"enlarging to {shown(self.size)}" if progress else None
    columns = (images_low, tokens, rngs)
    return self._in_batches(self._upscale, columns, title, **options)

  def predict(self, batch: Batch, rngs: Array) -> dict[str, np.ndarray]:
    """{"low", "image"}: a batch's pictures made small, and enlarged again."""
    low = feature_converters.to_pixels(self._downsample(batch["images"]))
    images_low = feature_converters.PIXELS[low]
    return {
      "low": low,
      "image": self.draw(images_low, prompts.of_batch(batch), rngs),
    }


def artist_of(model: Any) -> type[Generator] | type[Upscaler]:
  """Which of both a model is for."""
  return Upscaler if isinstance(model, contract.Upscales) else Generator


def check_request(
  texts: Sequence[str],
  seed: int,
  num_steps: int | None = None,
  **scales: float | None,
) -> None:
  """Raises ValueError for what cannot be drawn."""
  if not texts:
    raise ValueError("generate() needs at least one text.")
  if num_steps is not None and num_steps < 1:
    raise ValueError(f"{num_steps=} must be positive.")
  for name, scale in scales.items():
    if scale is not None and not math.isfinite(scale):
      raise ValueError(f"{name}={scale} must be a finite number.")
  if abs(seed) >= 2**63:
    raise ValueError(f"{seed=} is too large: it has 64 bits.")


def size_of(model: Any) -> tuple[int, int]:
  """(H, W) of the pictures that a model makes."""
  height, width = model.input_shapes()["images"][1:3]
  return height, width


def shown(size: Sequence[int]) -> str:
  """(height, width) as people write it: "64 x 256"."""
  return " x ".join(map(str, size))


def infer(
  *,
  model: Any,
  infer_data: Callable[..., Any],
  checkpoint_path: str,
  output_dir: str,
  batch_size: int,
  partitioning: partitioning_lib.Partitioning,
  num_examples: int | None = None,
  step: int | None = None,
  use_ema: bool = True,
  seed: int = 0,
) -> pathlib.Path:
  """Draws (or enlarges) a data set; writes PNGs and predictions.jsonl.

  Args:
    model: meets contract.Model.
    infer_data: as trainer.train's train_data; finite.
    checkpoint_path: a run's MODEL_DIR.
    output_dir: gets <index>.png, <index>.target.png and predictions.jsonl,
      whose "example_id" says which example it is; of a model that enlarges,
      <index>.low.png, too: the target made small, which <index>.png was made
      of, and each record's "psnr" in dB beside that of bilinear interpolation.
    batch_size: images at a time.
    partitioning: mesh and rules.
    num_examples: None draws the whole split.
    step: None is the last committed one.
    use_ema: sample with the averaged parameters.
    seed: of the noise.

  Returns:
    The path of predictions.jsonl, one object per example.
  """
  telemetry.enable_compilation_cache()
  if partitioning.host_layout()[1] > 1:
    raise ValueError("infer writes its files from one host; start it on one.")
  artist = artist_of(model).restore(
    model, checkpoint_path, step=step, use_ema=use_ema, batch_size=batch_size
  )
  # Example by example: no split is too small, and no rest is left.
  rows = itertools.islice(infer_data(batch_size=1), num_examples)
  directory = pathlib.Path(output_dir).absolute()
  directory.mkdir(parents=True, exist_ok=True)
  partial = directory / "predictions.jsonl.partial"
  drawn = 0
  with (
    partial.open("w", encoding="utf-8") as out,
    tqdm.tqdm(total=num_examples, desc="drawing", unit="image") as bar,
  ):
    while part := list(itertools.islice(rows, batch_size)):
      batch = {
        name: np.concatenate([row[name] for row in part]) for name in part[0]
      }
      # By example, so that neither order nor batch size changes a picture.
      rngs = contract.per_example_rngs(
        jax.random.key(seed), jnp.asarray(batch["example_id"])
      )
      pictures = artist.predict(batch, rngs)
      pictures["target"] = feature_converters.to_pixels(batch["images"])
      for i, tokens in enumerate(batch["text_tokens"]):
        record = {
          **_write(directory, drawn, {k: x[i] for k, x in pictures.items()}),
          "text": text.decode(tokens),
          "step": artist.step,
          "example_id": "".join(f"{x:08x}" for x in batch["example_id"][i]),
        }
        out.write(json.dumps(record, ensure_ascii=False) + "\n")
        drawn += 1
      bar.update(len(part))
  if not drawn:
    raise ValueError("the data are empty: nothing was drawn.")
  return partial.replace(directory / "predictions.jsonl")


def _write(
  directory: pathlib.Path, index: int, pictures: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Saves an example's pictures; their names and scores, for its record."""
  record: dict[str, Any] = {}
  for kind, picture in pictures.items():
    name = f"{index:06d}.{kind}.png".replace(".image.", ".")
    Image.fromarray(picture).save(directory / name)
    record[kind] = name
  if "low" in pictures:
    target = pictures["target"]
    size = target.shape[1::-1]
    bilinear = Image.fromarray(pictures["low"]).resize(
      size, Image.Resampling.BILINEAR
    )
    record["psnr"] = psnr(pictures["image"], target)
    record["psnr_bilinear"] = psnr(np.asarray(bilinear), target)
  return record


def psnr(picture: np.ndarray, target: np.ndarray) -> float:
  """10 log10(255^2 / mean squared error) of two uint8 pictures, in dB.

  99 for equal ones, beyond what a single wrong pixel of a large picture gives.
  """
  error = np.mean((picture.astype(np.float64) - target) ** 2)
  return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0
