"""Hostile files are refused with a reason; odd ones are converted right."""

import io
import os
import resource
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from byt5_diffusion.data import images

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def _save(image: Image.Image, kind: str, **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def _photo(kind: str, **options) -> bytes:
  return _save(Image.fromarray(PHOTO), kind, **options)


def _chunk(kind: bytes, data: bytes) -> bytes:
  check = struct.pack(">I", zlib.crc32(kind + data))
  return struct.pack(">I", len(data)) + kind + data + check


def _png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
  header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
  return b"".join(
    [
      b"\x89PNG\r\n\x1a\n",
      _chunk(b"IHDR", header),
      _chunk(b"IDAT", zlib.compress(rows)),
      _chunk(b"IEND", b""),
    ]
  )


def _frames(kind: str) -> bytes:
  first, *rest = (
    Image.fromarray(np.full((8, 8, 3), level, np.uint8))
    for level in (0, 128, 255)
  )
  return _save(first, kind, save_all=True, append_images=rest)


def _webp_bomb() -> bytes:
  """A canvas of 16384 x 16384 announced around a small picture."""
  small = _photo("WEBP", lossless=True)[12:]
  canvas = struct.pack("<I", 0x10)[:4] + (16383).to_bytes(3, "little") * 2
  body = b"VP8X" + struct.pack("<I", 10) + canvas + small
  return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _gif_bomb() -> bytes:
  raw = bytearray(_photo("GIF"))
  raw[6:10] = struct.pack("<HH", 65535, 65535)
  return bytes(raw)


BAD = {
  "empty": (b"", "empty file"),
  "truncated JPEG": (_photo("JPEG")[:-400], "broken: image file is truncated"),
  "truncated PNG": (_photo("PNG")[:-2000], "broken: "),
  "header only": (_photo("PNG")[:20], "broken: |not an image"),
  "text": (b"This is no picture at all.", "not an image"),
  "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
  "ICO": (_save(Image.fromarray(PHOTO), "ICO"), "not an image"),
  "PPM": (_photo("PPM"), "not an image"),
  "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
  "animated GIF": (_frames("GIF"), "animated"),
  "animated WebP": (_frames("WEBP"), "animated"),
  "APNG": (_frames("PNG"), "animated"),
  "multi-page TIFF": (_frames("TIFF"), "several pages"),
  "PNG bomb": (_png(50_000, 50_000, 8, 2, b"\0" * 1000), "more than 64000000"),
  "GIF bomb": (_gif_bomb(), "more than 64000000"),
  "WebP bomb": (_webp_bomb(), "more than 64000000"),
  "float TIFF": (
    _save(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
    "mode F",
  ),
  "int32 TIFF": (
    _save(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"),
    "mode I",
  ),
  "broken zlib": (
    _photo("PNG").replace(b"IDAT\x78", b"IDAT\x00", 1),
    "broken: ",
  ),
  "noise after magic": (b"\xff\xd8\xff\xe0" + bytes(range(256)), "."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images_are_refused_with_a_reason(case):
  raw, reason = BAD[case]
  with pytest.raises(images.BadImage, match=reason) as caught:
    images.decode_image(raw, name="dir/file.png")
  assert caught.value.file == "dir/file.png"
  assert str(caught.value) == f"dir/file.png: {caught.value.reason}"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_byte_of_a_broken_file_is_survived():
  good = [_photo("PNG"), _photo("JPEG"), _photo("GIF"), _frames("TIFF")]
  for raw in good:
    for _ in range(60):
      broken = bytearray(raw)
      for place in RNG.integers(0, min(len(raw), 400), 4):
        broken[place] = RNG.integers(256)
      try:
        decoded = images.decode_image(bytes(broken), max_pixels=1_000_000)
      except images.BadImage:
        continue
      assert decoded.dtype == np.uint8 and decoded.shape[2] == 3


def test_a_bomb_costs_no_memory(tmp_path):
  files = {
    "bomb.png": BAD["PNG bomb"][0],
    "bomb.gif": BAD["GIF bomb"][0],
    "bomb.webp": BAD["WebP bomb"][0],
  }
  for file, raw in files.items():
    (tmp_path / file).write_bytes(raw)
  program = textwrap.dedent("""
    import pathlib, resource, sys
    from byt5_diffusion.data import images
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = peak()
    for path in pathlib.Path(sys.argv[1]).iterdir():
      try:
        images.decode_image(path)
      except images.BadImage:
        continue
      sys.exit("decoded " + path.name)
    print((peak() - before) // 1024)
  """)
  done = subprocess.run(
    [sys.executable, "-c", program, str(tmp_path)],
    check=True,
    capture_output=True,
    text=True,
  )
  assert int(done.stdout) < 100  # MiB
  assert resource.RLIMIT_AS  # The figures above are those of a POSIX system.


def test_caps():
  raw = _photo("PNG")
  assert images.decode_image(raw, max_pixels=2400).shape == (40, 60, 3)
  with pytest.raises(images.BadImage, match="more than 2399 pixels"):
    images.decode_image(raw, max_pixels=2399)
  with pytest.raises(images.BadImage, match="more than 100 bytes"):
    images.decode_image(raw, max_bytes=100)


def test_paths(tmp_path):
  path = tmp_path / "a.png"
  path.write_bytes(_photo("PNG"))
  np.testing.assert_array_equal(images.decode_image(path), PHOTO)
  np.testing.assert_array_equal(images.decode_image(str(path)), PHOTO)
  with pytest.raises(images.BadImage, match="No such file"):
    images.decode_image(tmp_path / "absent.png")
  pipe = tmp_path / "pipe.png"
  os.mkfifo(pipe)
  with pytest.raises(images.BadImage, match="not a regular file"):
    images.decode_image(pipe)
  with pytest.raises(images.BadImage, match="not a regular file"):
    images.decode_image(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_are_exact(kind):
  np.testing.assert_array_equal(images.decode_image(_photo(kind)), PHOTO)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_lossy_formats_are_near(kind):
  if kind == "AVIF" and not features.check("avif"):
    pytest.skip("this Pillow reads no AVIF")
  smooth = np.zeros((40, 60, 3), np.uint8)
  smooth[..., 0] = np.linspace(0, 255, 60)
  smooth[..., 1] = np.linspace(255, 0, 40)[:, None]
  options = {} if kind == "GIF" else {"quality": 95}
  raw = _save(Image.fromarray(smooth), kind, **options)
  error = images.decode_image(raw).astype(int) - smooth
  assert np.abs(error).mean() < (12 if kind == "GIF" else 5)


def test_sixteen_bit_gray_is_scaled_not_clipped():
  levels = np.array([[0, 127, 128, 129], [257, 32768, 65535, 300]], np.uint16)
  expected = np.round(levels / 257).astype(np.uint8)
  for kind in ("PNG", "TIFF"):
    decoded = images.decode_image(_save(Image.fromarray(levels), kind))
    np.testing.assert_array_equal(decoded, np.stack([expected] * 3, -1))


def test_sixteen_bit_colour():
  values = np.array([[[0, 32768, 65535], [257, 514, 256]]], ">u2")
  raw = _png(2, 1, 16, 2, b"\0" + values.tobytes())
  decoded = images.decode_image(raw).astype(int)
  assert np.abs(decoded - values.astype(int) / 257).max() <= 1


def test_transparency_is_blended_with_white():
  rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]])
  raw = _save(Image.fromarray(rgba.astype(np.uint8), "RGBA"), "PNG")
  decoded = images.decode_image(raw)
  np.testing.assert_array_equal(decoded[0, 0], [10, 20, 30])
  np.testing.assert_array_equal(decoded[0, 1], [255, 255, 255])
  np.testing.assert_array_equal(decoded[0, 2], [127, 127, 127])


def test_gray_with_alpha_and_plain_gray():
  both = np.array([[[40, 255], [40, 0]]], np.uint8)
  decoded = images.decode_image(_save(Image.fromarray(both, "LA"), "PNG"))
  np.testing.assert_array_equal(decoded[0], [[40] * 3, [255] * 3])
  gray = np.arange(16, dtype=np.uint8).reshape(4, 4)
  decoded = images.decode_image(_save(Image.fromarray(gray), "PNG"))
  np.testing.assert_array_equal(decoded, np.stack([gray] * 3, -1))
  bits = Image.fromarray(np.eye(4, dtype=bool))
  np.testing.assert_array_equal(
    images.decode_image(_save(bits, "PNG"))[..., 0], 255 * np.eye(4)
  )


def test_palette_with_transparency():
  image = Image.new("P", (3, 1))
  image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
  image.putdata([0, 1, 2])
  expected = [[255, 0, 0], [255, 255, 255], [0, 0, 255]]
  for options in ({"transparency": 1}, {"transparency": b"\xff\x00\xff"}):
    decoded = images.decode_image(_save(image, "PNG", **options))
    np.testing.assert_array_equal(decoded[0], expected)
  plain = images.decode_image(_save(image, "PNG"))
  np.testing.assert_array_equal(plain[0, 1], [0, 255, 0])


def test_a_transparent_colour_key():
  colours = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
  raw = _save(Image.fromarray(colours), "PNG", transparency=(1, 2, 3))
  np.testing.assert_array_equal(
    images.decode_image(raw)[0], [[255, 255, 255], [4, 5, 6]]
  )


def test_cmyk_jpeg():
  inks = np.zeros((16, 16, 4), np.uint8)
  inks[:, :8] = [0, 255, 255, 0]  # magenta + yellow = red
  inks[:, 8:] = [255, 0, 255, 0]  # cyan + yellow = green
  raw = _save(Image.fromarray(inks, "CMYK"), "JPEG", quality=100)
  decoded = images.decode_image(raw).astype(int)
  assert np.abs(decoded[8, 2] - [255, 0, 0]).max() < 8
  assert np.abs(decoded[8, 13] - [0, 255, 0]).max() < 8


def test_an_embedded_profile_changes_nothing():
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  raw = _photo("PNG", icc_profile=profile)
  np.testing.assert_array_equal(images.decode_image(raw), PHOTO)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
  # The inverse of each orientation's meaning, in numpy (EXIF 2.3, table 6).
  stored = {
    1: PHOTO,
    2: PHOTO[:, ::-1],
    3: PHOTO[::-1, ::-1],
    4: PHOTO[::-1],
    5: PHOTO.transpose(1, 0, 2),
    6: np.rot90(PHOTO),
    7: PHOTO[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(PHOTO, -1),
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  raw = _save(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
  np.testing.assert_array_equal(images.decode_image(raw), PHOTO)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_is_ignored():
  raw = _photo("PNG", exif=b"Exif\0\0MM\0*\0\0\0\xff")
  np.testing.assert_array_equal(images.decode_image(raw), PHOTO)


def test_fit_pads_with_white_and_keeps_proportions():
  black = np.zeros((10, 20, 3), np.uint8)
  fitted = images.fit(black, 16, 16)
  assert fitted.shape == (16, 16, 3)
  np.testing.assert_array_equal(fitted[:4], 255)
  np.testing.assert_array_equal(fitted[4:12], 0)
  np.testing.assert_array_equal(fitted[12:], 255)


def test_fit_crops_the_centre():
  stripes = np.repeat(np.repeat(np.array([[0, 90, 255]]), 8, 0), 8, 1)
  stripes = np.repeat(stripes[..., None], 3, -1).astype(np.uint8)
  fitted = images.fit(stripes, 8, 8, mode="crop")
  np.testing.assert_array_equal(fitted, np.full((8, 8, 3), 90))


def test_fit_leaves_a_fitting_image_alone():
  assert images.fit(PHOTO, 40, 60) is PHOTO
  assert images.fit(PHOTO, 40, 60, mode="crop") is PHOTO


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (37, 91)])
def test_fit_any_shape(mode, shape):
  fitted = images.fit(np.zeros((*shape, 3), np.uint8), 16, 48, mode=mode)
  assert fitted.shape == (16, 48, 3) and fitted.dtype == np.uint8
  assert (fitted == 0).any()


def test_fit_unknown_mode():
  with pytest.raises(ValueError, match="stretch"):
    images.fit(PHOTO, 8, 8, mode="stretch")
