"""Ways of resizing: closed forms, peers, and pictures that stay in place."""

import io

import hypothesis
import numpy as np
import odd_images
import pytest
from hypothesis import strategies
from PIL import Image

from byt5_diffusion.data import (
  annotated,
  images,
  jpeg,
  patches,
  pictures,
  resizing,
  supplies,
)
from byt5_diffusion.data.rows import tables

RNG = np.random.default_rng(3)
SIDES = strategies.integers(1, 400)


def _smooth(height: int, width: int) -> np.ndarray:
  """Waves that are longer than any filter here is wide."""
  y, x = np.mgrid[0:height, 0:width] / 40
  waves = [np.sin(x), np.cos(y), np.sin(x + y)]
  return (127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


def _jpeg(pixels: np.ndarray, **options) -> bytes:
  return odd_images.save(pixels, "JPEG", quality=95, **options)


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_lanczos_is_pillows_of_the_part_that_is_shown(mode: str) -> None:
  pixels = RNG.integers(0, 256, (90, 140, 3), np.uint8)
  fitted = images.fit(pixels, 30, 30, mode)
  image = Image.fromarray(pixels)
  if mode == "crop":
    part = image.crop((25, 0, 115, 90)).resize((30, 30), resample=1)
    np.testing.assert_array_equal(fitted, np.array(part))
  else:
    part = image.resize((30, 19), resample=1)
    np.testing.assert_array_equal(fitted[5:24], np.array(part))
    assert (fitted[:5] == 255).all() and (fitted[24:] == 255).all()
  # The same of a picture that came out of a file, whatever its mode.
  for decoded in (
    images.decode(odd_images.save(pixels, "PNG")),
    images.Decoded(image.convert("RGBX"), (90, 140)),
  ):
    np.testing.assert_array_equal(fitted, images.fit(decoded, 30, 30, mode))


def test_gray_pictures_are_resized_as_coloured_ones() -> None:
  gray = RNG.integers(0, 256, (50, 70), np.uint8)
  coloured = np.repeat(gray[..., None], 3, -1)
  for way in resizing.WAYS:
    one = images.fit(
      images.Decoded(Image.fromarray(gray), (50, 70)), 20, 20, "crop", way
    )
    other = images.fit(coloured, 20, 20, "crop", way)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("way", ["area", "scaled"])
def test_whole_factors_are_plain_averages(way: str) -> None:
  pixels = RNG.integers(0, 256, (60, 90, 3), np.uint8)
  fitted = images.fit(pixels, 20, 20, "crop", way)
  shown = pixels[:, 15:75].reshape(20, 3, 20, 3, 3).astype(float)
  error = fitted - shown.mean((1, 3))
  assert np.abs(error).max() < 0.6


@pytest.mark.parametrize("way", resizing.WAYS)
@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(SIDES, SIDES, SIDES, SIDES, strategies.booleans())
def test_any_size_can_be_made(way, height, width, rows, columns, crop) -> None:
  pixels = np.full((height, width, 3), 90, np.uint8)
  mode = "crop" if crop else "pad"
  fitted = images.fit(pixels, rows, columns, mode, way)
  assert fitted.shape == (rows, columns, 3)
  assert set(np.unique(fitted)) <= {90, 255}
  if crop:
    assert (fitted == 90).all()


@hypothesis.given(
  strategies.integers(1, 5000),
  strategies.integers(1, 5000),
  strategies.integers(1, 1024),
  strategies.integers(1, 1024),
  strategies.booleans(),
)
def test_no_fraction_is_smaller_than_needed(h, w, rows, columns, crop) -> None:
  mode = "crop" if crop else "pad"
  needed = images.needed((h, w), rows, columns, mode)
  number = jpeg.denominator((h, w), needed)
  if number == 1:
    return
  place = images.placement((h, w), rows, columns, mode)
  # What is shown of it has at least as many pixels as it is shown on.
  assert h // number >= h * place.scale_y - 1e-6
  assert w // number >= w * place.scale_x - 1e-6
  if number < 8 and min(h, w) >= 64:
    twice = (h // (2 * number), w // (2 * number))
    assert twice[0] < needed[0] or twice[1] < needed[1]


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize("size", [(301, 407), (400, 300), (257, 1001)])
def test_a_fraction_shows_the_same_picture_in_the_same_place(
  mode: str, size: tuple[int, int]
) -> None:
  raw = _jpeg(_smooth(*size))
  made = {}
  for way in resizing.WAYS:
    frame = pictures.Frame(height=48, width=64, fit=mode, resize=way)
    decoded = pictures.decode(raw, frame, "x")
    assert decoded.size == size
    assert (decoded.image.height < size[0]) == (way == "scaled")
    made[way] = frame.make(decoded).astype(int)
  for way in ("area", "scaled"):
    error = np.abs(made[way] - made["lanczos"])
    assert error.mean() < 1.0, way
    # Half a pixel to the side would be seen.
    moved = np.abs(np.roll(made[way], 1, 1) - made["lanczos"])[:, 8:-8]
    assert error[:, 8:-8].mean() < moved.mean() / 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_fraction_is_upright(orientation: int) -> None:
  raw = odd_images.turned(orientation)
  frame = pictures.Frame(height=20, width=30, resize="scaled")
  decoded = pictures.decode(raw, frame, "x")
  assert decoded.size == (80, 120) and decoded.image.size == (30, 20)
  exact = images.fit(odd_images.PIXELS, 20, 30).astype(int)
  assert np.abs(frame.make(decoded) - exact).mean() < 1.5


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_a_turned_picture_of_odd_size_does_not_move(orientation: int) -> None:
  """What a fraction leaves incomplete would be at its beginning."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  raw = _jpeg(_smooth(151, 207), exif=exif)
  made = []
  for way in ("lanczos", "scaled"):
    frame = pictures.Frame(height=16, width=16, fit="crop", resize=way)
    made.append(frame.make(pictures.decode(raw, frame, "x")).astype(int))
  assert np.abs(made[0] - made[1]).mean() < 0.8


def test_regions_lie_where_they_would() -> None:
  example = annotated.Annotated(
    key="k",
    image=_jpeg(_smooth(333, 517)),
    text="x",
    regions=(
      annotated.Region(box=(100, 50, 300, 200), label="word", text="x"),
    ),
  )
  made = []
  for way in ("lanczos", "scaled"):
    frame = pictures.AnnotatedFrame(height=64, width=64, fit="crop", resize=way)
    decoded = pictures.decode(example.image, frame, "x")
    made.append(frame.annotate(example, decoded.size, {}))
  assert decoded.image.width == 130 and decoded.denominator == 4
  for name, value in made[0].items():
    np.testing.assert_array_equal(value, made[1][name])


@pytest.mark.parametrize("way", resizing.WAYS)
def test_pages_become_the_same_patches(way: str) -> None:
  page = _smooth(1100, 850)
  grid = pictures.PatchGrid(patch_size=8, max_patches=512, resize=way)
  decoded = pictures.decode(_jpeg(page), grid, "x")
  assert decoded.denominator == (4 if way == "scaled" else 1)
  made = grid.make(decoded)
  rows, columns = patches.grid(1100, 850, 512)
  assert made.shape == (rows * columns, 2 + 3 * 64)
  exact = patches.cut(patches.scale(page, 8, 512), 8)
  np.testing.assert_array_equal(made[:, :2], exact[:, :2])
  assert np.abs(made - exact).mean() < 1.5


def _open(path: str, *, many: int = 3) -> supplies.Supply:
  raw = io.BytesIO()
  Image.fromarray(_smooth(300, 300)).save(raw, "JPEG")
  return tables.from_rows(path, [{"n": i} for i in range(many)])  # type: ignore


TABLE = {"photos": supplies.Kind(_open)}


@pytest.mark.parametrize("way", resizing.WAYS)
def test_names_say_how(way: str) -> None:
  for name in ("photos:/a@64x64crop", "photos_reading:/a@64x16"):
    for option in (f"+resize={way}", f"+many=2+resize={way}"):
      parsed = supplies.parse(TABLE, name + option)
      assert parsed is not None and parsed.picture.resize == way
      assert len(parsed.supply) == (2 if "many" in option else 3)
  parsed = supplies.parse(TABLE, "photos_annotated:/a@64x64")
  assert parsed is not None and parsed.picture.resize == "lanczos"


def test_names_that_say_it_wrongly() -> None:
  with pytest.raises(ValueError, match="'exact' must be one of lanczos, area"):
    supplies.parse(TABLE, "photos:/a@64x64+resize=exact")
  with pytest.raises(ValueError, match="resize"):
    supplies.parse(TABLE, "photos:/a@64x64+size=area")
