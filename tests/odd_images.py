"""Files that are not what one expects: BAD ones are refused, ODD ones read.

Everything is made here, in memory; `PIXELS` is what the odd ones show.
"""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

MIB = 2**20
_RNG = np.random.default_rng(0)
# Smooth, so that lossy formats are near; wide enough to be scaled.
_Y, _X = np.mgrid[0:80, 0:120]
PIXELS = np.stack([2 * _X, 255 - 3 * _Y, _X + _Y], -1).astype(np.uint8)
NOISE = _RNG.integers(0, 256, (80, 120, 3), np.uint8)


def save(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  raw = io.BytesIO()
  image.save(raw, kind, **options)
  return raw.getvalue()


# -- PNG ---------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
  check = struct.pack(">I", zlib.crc32(kind + data))
  return struct.pack(">I", len(data)) + kind + data + check


def png(
  width: int, height: int, depth: int, colour: int, rows: bytes, lace: int = 0
) -> bytes:
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, lace)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + chunk(b"IDAT", zlib.compress(rows))
    + chunk(b"IEND", b"")
  )


def with_chunks(chunks: bytes) -> bytes:
  """Behind the header of a good PNG."""
  raw = save(PIXELS, "PNG")
  return raw[:33] + chunks + raw[33:]


def _rows(pixels: np.ndarray) -> bytes:
  return b"".join(b"\0" + row.tobytes() for row in pixels)


def interlaced() -> bytes:
  """Adam7's seven pictures of PIXELS."""
  steps = (
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4),
    (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1),
  )  # fmt: skip
  parts = [PIXELS[y::dy, x::dx] for y, x, dy, dx in steps]
  return png(120, 80, 8, 2, b"".join(_rows(part) for part in parts), lace=1)


def zeros(mib: int) -> bytes:
  """Deflated."""
  press = zlib.compressobj(9)
  return (
    b"".join(press.compress(bytes(MIB)) for _ in range(mib)) + press.flush()
  )


# -- JPEG --------------------------------------------------------------------


def jpeg(**options) -> bytes:
  return save(PIXELS, "JPEG", quality=95, **options)


def behind_start(raw: bytes, parts: bytes) -> bytes:
  """Behind a JPEG's first marker."""
  return raw[:2] + parts + raw[2:]


def many_scans(count: int, side: int = 64) -> bytes:
  """The last scan of a progressive JPEG, again and again."""
  raw = save(Image.new("RGB", (side, side)), "JPEG", progressive=True)
  last = raw[raw.rindex(b"\xff\xda") : -2]
  return raw[:-2] + last * count + raw[-2:]


def huge_jpeg() -> bytes:
  raw = bytearray(jpeg())
  at = raw.index(b"\xff\xc0") + 5
  raw[at : at + 4] = struct.pack(">HH", 65500, 65500)
  return bytes(raw)


def without_segment(raw: bytes, marker: bytes) -> bytes:
  at = raw.index(marker)
  (size,) = struct.unpack_from(">H", raw, at + 2)
  return raw[:at] + raw[at + 2 + size :]


def cmyk(**options) -> bytes:
  inks = 255 - PIXELS
  inks = np.concatenate([inks, np.zeros((80, 120, 1), np.uint8)], -1)
  return save(Image.fromarray(inks, "CMYK"), "JPEG", quality=95, **options)


def ycck() -> bytes:
  """As Photoshop has it: YCbCr of the inks, and black, under transform 2."""
  inks = Image.fromarray(255 - PIXELS).convert("YCbCr")
  black = np.zeros((80, 120, 1), np.uint8)
  planes = np.concatenate([255 - np.asarray(inks), black], -1)
  raw = bytearray(save(Image.fromarray(planes, "CMYK"), "JPEG", quality=95))
  raw[raw.index(b"Adobe") + 11] = 2
  return bytes(raw)


def turned(orientation: int, kind: str = "JPEG") -> bytes:
  """PIXELS, stored so that EXIF must turn them."""
  stored = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: np.rot90(PIXELS),
    7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(PIXELS, -1),
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {"quality": 95} if kind == "JPEG" else {}
  return save(np.ascontiguousarray(stored), kind, exif=exif, **options)


def exif_of_entries(count: int, size: int) -> bytes:
  """Every entry claims all of the block."""
  entries = (
    struct.pack("<HHII", 0x1000 + i, 7, size - 8, 8) for i in range(count)
  )
  head = b"II*\0" + struct.pack("<IH", 8, count)
  return (head + b"".join(entries)).ljust(size, b"\0")


# -- TIFF, GIF, BMP, WebP ----------------------------------------------------

_GRAY_8x8 = {
  256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1),
  262: (3, 1, 1), 273: (4, 1, 300), 277: (3, 1, 1), 278: (4, 1, 8),
  279: (4, 1, 64),
}  # fmt: skip


def tiff(
  changes: dict, following: int = 0, data: bytes = b"\x80" * 64
) -> bytes:
  """A gray TIFF of 8 x 8 with other entries {tag: (type, count, value)}."""
  entries = sorted((_GRAY_8x8 | changes).items())
  raw = b"II*\0" + struct.pack("<IH", 8, len(entries))
  for tag, (kind, count, value) in entries:
    raw += struct.pack("<HHII", tag, kind, count, value)
  return (raw + struct.pack("<I", following)).ljust(300, b"\0") + data


def tiles(width: int, height: int, data: bytes) -> bytes:
  return tiff(
    {
      259: (3, 1, 8),
      322: (4, 1, width),
      323: (4, 1, height),
      324: (4, 1, 300),
      325: (4, 1, len(data)),
    },
    data=data,
  )


def frames(kind: str, count: int = 3) -> bytes:
  first, *rest = (
    Image.fromarray(np.full((8, 8, 3), 9 * i % 256, np.uint8))
    for i in range(count)
  )
  return save(first, kind, save_all=True, append_images=rest)


def in_gif(blocks: bytes) -> bytes:
  """Before a GIF's picture."""
  raw = save(Image.new("P", (8, 8)), "GIF")
  at = raw.index(b",", 13)
  return raw[:at] + blocks + raw[at:]


def huge_gif() -> bytes:
  raw = bytearray(save(Image.new("P", (8, 8)), "GIF"))
  raw[6:10] = struct.pack("<HH", 65535, 65535)
  return bytes(raw)


def runs(count: int, side: int = 8000) -> bytes:
  """A BMP of many runs of one pixel."""
  body = b"\1\0" * count
  return (
    b"BM"
    + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078)
    + struct.pack(
      "<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0
    )
    + bytes(1024)
    + body
  )


def huge_bmp() -> bytes:
  raw = bytearray(save(PIXELS, "BMP"))
  raw[18:26] = struct.pack("<ii", 100_000, 100_000)
  return bytes(raw)


def huge_webp() -> bytes:
  """A canvas of 16384 x 16384 announced around a small picture."""
  small = save(PIXELS, "WEBP", lossless=True)[12:]
  canvas = struct.pack("<I", 0x10) + (16383).to_bytes(3, "little") * 2
  body = b"VP8X" + struct.pack("<I", 10) + canvas + small
  return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _mpo() -> bytes:
  small = Image.fromarray(PIXELS[::2, ::2].copy())
  return save(PIXELS, "MPO", save_all=True, append_images=[small], quality=95)


def _wide_gamut() -> bytes:
  """Some profile that is not sRGB: a profile of Lab."""
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
  return jpeg(icc_profile=profile)


# -- Bombs: small files that would take long, or gigabytes -------------------

# Name -> (what makes it of its size in bytes, the reason for refusing it).
PARTS = "more than [0-9]+ parts"
BOMBS: dict[str, tuple[Callable[[int], bytes], str]] = {
  "JPEG of endless scans": (lambda n: many_scans(n // 100), "scans"),
  "JPEG of fill bytes": (lambda n: behind_start(jpeg(), b"\xff" * n), PARTS),
  "JPEG of comments": (
    lambda n: behind_start(jpeg(), b"\xff\xfe\0\2" * (n // 4)),
    PARTS,
  ),
  "PNG of chunks": (
    lambda n: with_chunks(chunk(b"prVw", b"") * (n // 12)),
    PARTS,
  ),
  "GIF of comments": (
    lambda n: in_gif(b"!\xfe" + b"\1a" * (n // 2) + b"\0"),
    PARTS,
  ),
  "GIF of extensions": (lambda n: in_gif(b"!\xfe\1a\0" * (n // 5)), PARTS),
  "BMP of runs": (lambda n: runs(n // 2), PARTS),
  "TIFF of strips": (
    lambda n: tiff(
      {257: (4, 1, n // 4), 278: (4, 1, 1), 273: (4, n // 4, 300)},
      data=bytes(n),
    ),
    "strips",
  ),
  "TIFF of entries that overlap": (
    lambda n: tiff(
      {1000 + i: (7, n, 300) for i in range(min(5000, n // 1000))},
      data=bytes(2 * n),
    ),
    "overlap",
  ),
}

# -- The lists ---------------------------------------------------------------

# Name -> (the file, a pattern of the reason).
BAD: dict[str, tuple[bytes, str]] = {
  "zero bytes": (b"", "empty file"),
  "text as .jpg": (b"This is no picture at all.", "not an image"),
  "page of HTML": (b"<!DOCTYPE html><title>404</title>", "not an image"),
  "UTF-16 text": ("no picture".encode("utf-16"), "not an image"),
  "SVG as .png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
  "PDF": (b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "not an image"),
  "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
  "PSD": (b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3),
          "not an image"),
  "JPEG 2000": (save(PIXELS, "JPEG2000"), "not an image"),
  "ICO": (save(PIXELS, "ICO"), "not an image"),
  "PPM": (save(PIXELS, "PPM"), "not an image"),
  "gzip of a JPEG": (b"\x1f\x8b\x08\0" + jpeg(), "not an image"),
  "JPEG, half of it": (jpeg()[: len(jpeg()) // 2], "truncated"),
  "progressive JPEG, half of it": (
    jpeg(progressive=True)[: len(jpeg(progressive=True)) // 2],
    "truncated",
  ),
  "PNG, half of it": (save(NOISE, "PNG")[:9000], "broken"),
  "PNG header": (save(PIXELS, "PNG")[:20], "broken|not an image"),
  "WebP, half of it": (save(NOISE, "WEBP")[:4000], "broken|not an image"),
  "TIFF, half of it": (save(NOISE, "TIFF")[:9000], "broken|not an image"),
  "BMP, half of it": (save(NOISE, "BMP")[:9000], "truncated"),
  "noise behind a JPEG's first bytes": (
    b"\xff\xd8\xff\xe0" + bytes(range(256)),
    "broken|not an image",
  ),
  "broken zlib": (
    save(NOISE, "PNG").replace(b"IDAT\x78", b"IDAT\x00", 1),
    "broken",
  ),
  "animated GIF": (frames("GIF"), "animated"),
  "animated WebP": (frames("WEBP"), "animated"),
  "APNG": (frames("PNG"), "animated"),
  "TIFF of pages": (frames("TIFF"), "several pages"),
  "TIFF of 300 pages": (frames("TIFF", 300), "several pages"),
  "TIFF whose next page is nowhere": (tiff({}, 2**31), "several pages"),
  "float TIFF": (save(np.zeros((4, 4), np.float32), "TIFF"), "mode F"),
  "32-bit TIFF": (save(np.zeros((4, 4), np.int32), "TIFF"), "mode I"),
  "PNG of 100000 x 100000": (
    png(100_000, 100_000, 8, 2, b"\0" * 1000),
    "more than 64000000 pixels",
  ),
  "JPEG of 65500 x 65500": (huge_jpeg(), "more than 64000000 pixels"),
  "GIF of 65535 x 65535": (huge_gif(), "more than 64000000 pixels"),
  "BMP of 100000 x 100000": (huge_bmp(), "more than 64000000 pixels"),
  "WebP of 16384 x 16384": (huge_webp(), "more than 64000000 pixels"),
  "TIFF of 100000 x 100000": (
    tiff({256: (4, 1, 100_000), 257: (4, 1, 100_000)}),
    "more than 64000000 pixels",
  ),
  "TIFF of huge tiles": (tiles(60_000, 60_000, zeros(8)), "tiles of more"),
  "TIFF of an unknown compression": (tiff({259: (3, 1, 4711)}), "broken|not"),
  "PNG of huge text": (
    with_chunks(chunk(b"zTXt", b"k\0\0" + zeros(64))),
    "broken",
  ),
  "PNG of a huge profile": (
    with_chunks(chunk(b"iCCP", b"k\0\0" + zeros(64))),
    "broken",
  ),
}  # fmt: skip

_SIXTEEN = PIXELS.astype(np.uint16) * 257
_ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# JPEGs that show PIXELS, more or less.
JPEGS: dict[str, bytes] = {
  "4:4:4": jpeg(subsampling=0),
  "4:2:2": jpeg(subsampling=1),
  "4:2:0": jpeg(subsampling=2),
  "4:1:1": jpeg(subsampling="4:1:1"),
  "progressive": jpeg(progressive=True),
  "optimized": jpeg(optimize=True),
  "restart markers": jpeg(restart_marker_blocks=3),
  "profile": jpeg(icc_profile=_ICC),
  "wide gamut": _wide_gamut(),
  "RGB, no YCbCr": jpeg(keep_rgb=True),
  "MPO": _mpo(),
  "trailing garbage": jpeg() + b"\0\xff\xda" * 5000,
  "and a ZIP": jpeg() + b"PK\3\4" + bytes(900) + b"PK\5\6" + bytes(18),
  "with a text of HTML": behind_start(
    jpeg(), b"\xff\xfe\0\x1b<script>alert(1)</script>"
  ),
  "CMYK": cmyk(),
  "CMYK without Adobe's marker": without_segment(cmyk(), b"\xff\xee"),
  "YCCK": ycck(),
  "huge EXIF": behind_start(
    jpeg(),
    b"\xff\xe1" + struct.pack(">H", 65008) + b"Exif\0\0"
    + exif_of_entries(5000, 65000),
  ),
  **{f"EXIF {i}": turned(i) for i in range(1, 9)},
}  # fmt: skip
# Files that show PIXELS to the bit.
EXACT: dict[str, bytes] = {
  "PNG": save(PIXELS, "PNG"),
  "interlaced PNG": interlaced(),
  "16-bit PNG": png(120, 80, 16, 2, _rows(_SIXTEEN.astype(">u2"))),
  "PNG with a profile": save(PIXELS, "PNG", icc_profile=_ICC),
  "PNG with broken EXIF": save(PIXELS, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\xff"),
  "RGBA PNG": save(
    np.concatenate([PIXELS, np.full((80, 120, 1), 255, np.uint8)], -1), "PNG"
  ),
  "PNG with trailing garbage": save(PIXELS, "PNG") + b"GIF89a" * 100,
  "BMP": save(PIXELS, "BMP"),
  "lossless WebP": save(PIXELS, "WEBP", lossless=True),
  "TIFF": save(PIXELS, "TIFF"),
  "BigTIFF": save(PIXELS, "TIFF", big_tiff=True),
  "TIFF by LZW": save(PIXELS, "TIFF", compression="tiff_lzw"),
  "TIFF by Deflate": save(PIXELS, "TIFF", compression="tiff_adobe_deflate"),
  "TIFF by PackBits": save(PIXELS, "TIFF", compression="packbits"),
  "TIFF by LZMA": save(PIXELS, "TIFF", compression="lzma"),
  **{f"PNG, EXIF {i}": turned(i, "PNG") for i in (3, 6)},
}
