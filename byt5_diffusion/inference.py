"""Captions to images: a trained run's folder is all that is needed.

`Generator.from_model_dir(folder).generate(texts)` is the library's door,
`infer` the program that draws a data set's captions. Neither imports
TensorFlow. An image depends on its caption, seed and sampler alone: not on the
batch, its size, or the order of the captions.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from PIL import Image

from byt5_diffusion import (
  contract,
  feature_converters,
  telemetry,
  trained,
)
from byt5_diffusion import partitioning as partitioning_lib
from byt5_diffusion.data import text

PyTree = Any


def image_rngs(seed: int, texts: Sequence[str]) -> jax.Array:
  """One key per image, from the seed, the caption and its repeat, [N]."""
  seen: dict[str, int] = {}
  words = np.zeros((len(texts), 2), np.uint32)
  for i, caption in enumerate(texts):
    repeat = seen.get(caption, 0)
    seen[caption] = repeat + 1
    digest = hashlib.blake2b(
      f"{repeat}:{caption}".encode("utf-8", "surrogatepass"), digest_size=8
    )
    words[i] = np.frombuffer(digest.digest(), "<u4")
  return contract.per_example_rngs(jax.random.key(seed), jnp.asarray(words))


def make_sampler(model: Any) -> Callable[..., jax.Array]:
  """A jitted draw(params, frozen, text_tokens, rngs) -> images [B, H, W, 3].

  guidance_scale and num_steps are static keywords: one compilation each.
  """

  @functools.partial(jax.jit, static_argnames=("guidance_scale", "num_steps"))
  def draw(
    params: PyTree,
    frozen: PyTree,
    text_tokens: jax.Array,
    rngs: jax.Array,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
  ) -> jax.Array:
    return model.sample(
      params,
      text_tokens,
      rngs,
      flax_mutables=frozen,
      guidance_scale=guidance_scale,
      num_steps=num_steps,
    )

  return draw


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator(trained.Trained):
  """A model that draws, with its weights."""

  @classmethod
  def check(cls, model: Any, where: str) -> None:
    """Raises ValueError for a model that does not draw."""
    if not isinstance(model, contract.Draws):
      raise ValueError(
        f"{where}: this model reads, but does not draw: `byt5-diffusion ocr` "
        "reads a picture by it."
      )

  @functools.cached_property
  def _draw(self) -> Callable[..., jax.Array]:
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
    if not texts:
      raise ValueError("generate() needs at least one text.")
    if guidance_scale is not None and not math.isfinite(guidance_scale):
      raise ValueError(f"{guidance_scale=} must be a finite number.")
    if abs(seed) >= 2**63:
      raise ValueError(f"{seed=} is too large: it has 64 bits.")
    tokens = text.encode_batch(texts, self.model.max_text_length)
    return self.draw(
      tokens,
      image_rngs(seed, texts),
      guidance_scale=guidance_scale,
      num_steps=num_steps,
      progress=progress,
    )

  def draw(
    self,
    tokens: np.ndarray,
    rngs: jax.Array,
    *,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
    progress: bool = False,
  ) -> np.ndarray:
    """Draws text_tokens [N, L] with a key each: uint8 [N, H, W, 3]."""
    images = []
    starts = range(0, len(tokens), self.batch_size)
    for start in tqdm.tqdm(
      starts, "drawing", disable=None if progress else True
    ):
      # The last batch is filled up: shapes are compiled once.
      rows = np.arange(start, start + self.batch_size) % len(tokens)
      batch = self._draw(
        self.params,
        self.frozen,
        jnp.asarray(tokens[rows]),
        rngs[rows],
        guidance_scale=guidance_scale,
        num_steps=num_steps,
      )
      images.append(feature_converters.to_pixels(batch))
    return np.concatenate(images)[: len(tokens)]


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
  """Draws a data set's captions; writes PNGs and predictions.jsonl.

  Args:
    model: meets contract.Model.
    infer_data: as trainer.train's train_data; finite.
    checkpoint_path: a run's MODEL_DIR.
    output_dir: gets <index>.png, <index>.target.png and predictions.jsonl.
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
  generator = Generator.restore(
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
      images = generator.draw(batch["text_tokens"], rngs)
      targets = feature_converters.to_pixels(batch["images"])
      for tokens, image, target in zip(
        batch["text_tokens"], images, targets, strict=True
      ):
        name = f"{drawn:06d}"
        Image.fromarray(image).save(directory / f"{name}.png")
        Image.fromarray(target).save(directory / f"{name}.target.png")
        record = {
          "image": f"{name}.png",
          "target": f"{name}.target.png",
          "text": text.decode(tokens),
          "step": generator.step,
        }
        out.write(json.dumps(record, ensure_ascii=False) + "\n")
        drawn += 1
      bar.update(len(part))
  if not drawn:
    raise ValueError("the data are empty: nothing was drawn.")
  return partial.replace(directory / "predictions.jsonl")
