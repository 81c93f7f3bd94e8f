"""Which font draws which script, where it lies, and how to get it.

A script is its ISO 15924 code. Han is written in four ways, and each has its
own glyphs for the same code points, so it goes by Jpan, Kore, Hans and Hant.
Nothing is asked of the system's font configuration: files are found by name
and read by HarfBuzz, so the same files give the same pixels on any machine.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence

from byt5_diffusion.data.writing import words

try:
  import uharfbuzz as hb
except ImportError as error:
  raise ImportError(
    "Drawing text needs uharfbuzz: pip install 'byt5-diffusion[typography]'."
  ) from error

# Debian package -> licence of its fonts, as its copyright file states it.
PACKAGES = {
  "fonts-noto-core": "OFL-1.1",
  "fonts-noto-cjk": "OFL-1.1",
  "fonts-dejavu-core": "Bitstream Vera (permissive)",
  "fonts-hosny-amiri": "OFL-1.1",
}

_CORE, _CJK, _DEJAVU, _AMIRI = PACKAGES
_SIMPLE = {"Cyrl": "", "Grek": "", "Latn": ""}  # NotoSans itself holds these.
_NAMED = {
  "Armn": "Armenian", "Beng": "Bengali", "Deva": "Devanagari",
  "Ethi": "Ethiopic", "Geor": "Georgian", "Gujr": "Gujarati",
  "Guru": "Gurmukhi", "Hebr": "Hebrew", "Khmr": "Khmer",
  "Knda": "Kannada", "Laoo": "Lao", "Mlym": "Malayalam",
  "Mymr": "Myanmar", "Sinh": "Sinhala", "Taml": "Tamil",
  "Telu": "Telugu", "Thai": "Thai",
}  # fmt: skip
_CJK_FACES = {"Jpan": 0, "Kore": 1, "Hans": 2, "Hant": 3}  # Inside the .ttc.


def _table() -> dict[str, tuple[tuple[str, int, str], ...]]:
  table = {}
  for script, name in (_SIMPLE | _NAMED).items():
    table[script] = [(f"NotoSans{name}", 0, _CORE)]
    table[script] += [(f"NotoSerif{name}", 0, _CORE)]
  for script in _SIMPLE:
    table[script] += [("DejaVuSans", 0, _DEJAVU), ("DejaVuSerif", 0, _DEJAVU)]
  for script in ("Armn", "Geor", "Hebr"):
    table[script] += [("DejaVuSans", 0, _DEJAVU)]
  table["Arab"] = [(f, 0, _CORE) for f in ("NotoSansArabic", "NotoNaskhArabic")]
  table["Arab"] += [("Amiri", 0, _AMIRI), ("DejaVuSans", 0, _DEJAVU)]
  table["Tibt"] = [("NotoSerifTibetan", 0, _CORE)]
  for script, face in _CJK_FACES.items():
    table[script] = [(f, face, _CJK) for f in ("NotoSansCJK", "NotoSerifCJK")]
  return {script: tuple(rows) for script, rows in sorted(table.items())}


# script -> (family as its files are called, face inside the file, package).
TABLE = _table()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Font:
  """One face of one file.

  Attributes:
    path: the file.
    index: which face of a collection (.ttc); 0 otherwise.
    style: lower-case file suffix: "regular", "bold", "bolditalic"...
    package: Debian package that holds it, "" if it isn't in the table.
    licence: of that package; "" if unknown.
    variations: (axis, value) of a variable font, () for its usual instance.
  """

  path: str
  index: int = 0
  style: str = "regular"
  package: str = ""
  licence: str = ""
  variations: tuple[tuple[str, float], ...] = ()


class MissingFont(LookupError):
  """No font of this machine covers a script."""


def cache_dir() -> pathlib.Path:
  """Where `fetch` puts fonts: ~/.cache/byt5_diffusion/fonts."""
  base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return pathlib.Path(base, "byt5_diffusion", "fonts").absolute()


def directories() -> tuple[str, ...]:
  """Where fonts are looked for; the first folder that has a file wins.

  $BYT5_DIFFUSION_FONTS (one folder or several, joined by the path separator),
  the cache, the user's folders, the system's.
  """
  return _directories(
    os.environ.get("BYT5_DIFFUSION_FONTS", ""), str(cache_dir())
  )


@functools.lru_cache(maxsize=8)
def _directories(named: str, cache: str) -> tuple[str, ...]:
  home = pathlib.Path.home()
  usual = [
    cache,
    home / ".fonts",
    home / ".local/share/fonts",
    "/usr/local/share/fonts",
    "/usr/share/fonts",
  ]
  return tuple(
    path for path in [*named.split(os.pathsep), *map(str, usual)] if path
  )


@functools.lru_cache(maxsize=8)
def found_files(folders: tuple[str, ...]) -> dict[tuple[str, str], str]:
  """{(family, style): path}, lower case, of all readable font files."""
  found: dict[tuple[str, str], str] = {}
  for folder in folders:
    for root, below, names in os.walk(folder):
      below[:] = sorted(d for d in below if not d.startswith("."))
      for name in sorted(names):
        path = os.path.join(root, name)
        stem, suffix = os.path.splitext(name.lower())
        if suffix not in (".ttf", ".otf", ".ttc"):
          continue
        # A dangling link must not hide a font of a later folder.
        if os.path.isfile(path) and os.access(path, os.R_OK):
          family, _, style = stem.partition("-")
          found.setdefault((family, style or "regular"), path)
  return found


@functools.lru_cache(maxsize=512)
def face(font: Font) -> hb.Face:
  """HarfBuzz's view of the file; an absent or broken one has no glyphs."""
  try:
    return hb.Face(hb.Blob.from_file_path(font.path), font.index)
  except hb.HarfBuzzError:
    return hb.Face(hb.Blob(b""), 0)


@functools.lru_cache(maxsize=512)
def coverage(font: Font) -> frozenset[int]:
  """Code points of the font's character map."""
  return frozenset(face(font).unicodes)


def covers(font: Font, script: str) -> bool:
  """Whether the font has the script's alphabet (words.ALPHABETS)."""
  letters = "".join(words.ALPHABETS[script].split())
  return coverage(font).issuperset(map(ord, letters))


@functools.lru_cache(maxsize=512)
def _fonts_for(
  script: str, styles: tuple[str, ...], folders: tuple[str, ...]
) -> tuple[Font, ...]:
  files = found_files(folders)
  fonts = [
    Font(
      path=files[family.lower(), style],
      index=index,
      style=style,
      package=package,
      licence=PACKAGES[package],
    )
    for family, index, package in TABLE[script]
    for style in styles
    if (family.lower(), style) in files
  ]
  fonts = [font for font in fonts if covers(font, script)]
  if fonts:
    return tuple(fonts)
  others = [
    Font(path=path, style=style)
    for (_, style), path in sorted(files.items())
    if style in styles
  ]
  return tuple(font for font in others if covers(font, script))


def fonts_for(
  script: str, *, styles: Sequence[str] = ("regular",)
) -> tuple[Font, ...]:
  """Fonts that cover `script`, best first.

  The table's families that are on this machine; if none is, any font at all
  that has the script's alphabet.

  Raises:
    ValueError: the table has no such script.
    MissingFont: no font covers it; says what to install.
  """
  if script not in TABLE:
    raise ValueError(
      f"No fonts are listed for script {script!r}; known are "
      f"{' '.join(TABLE)}. Add a row to fonts.TABLE and words.ALPHABETS."
    )
  fonts = _fonts_for(script, tuple(styles), directories())
  if not fonts:
    family, _, package = TABLE[script][0]
    raise MissingFont(
      f"No font covers script {script} in styles {list(styles)}. Debian's "
      f"package {package} ({PACKAGES[package]}) has {family}: run `python "
      f"tools/fetch_fonts.py` (needs no root), or `apt-get install {package}`, "
      "or put the file into a folder that $BYT5_DIFFUSION_FONTS names."
    )
  return fonts


def available_scripts(scripts: Iterable[str] = TABLE) -> tuple[str, ...]:
  """Those of `scripts` that this machine's fonts can draw, in their order."""

  def has_font(script: str) -> bool:
    try:
      return bool(fonts_for(script))
    except MissingFont:
      return False

  return tuple(filter(has_font, scripts))


# -- Getting fonts without root, without touching the system -----------------


class FetchError(RuntimeError):
  """A package could not be fetched; the message says why."""


def _private_apt(folder: pathlib.Path) -> dict[str, str]:
  """Environment for apt that reads the system's sources and writes to folder.

  The system's own configuration is left out but for how to reach the network:
  its hooks (container images have some that empty the system's cache) would
  act on the system.
  """
  for name in ("lists/partial", "cache/archives/partial", "log", "parts"):
    (folder / name).mkdir(parents=True)
  dump = subprocess.run(
    ["apt-config", "dump"], capture_output=True, text=True, check=True
  ).stdout
  kept = [
    line
    for line in dump.splitlines()
    if line.startswith(("Acquire::", "APT::Architecture"))
    and not line.startswith(("Acquire::IndexTargets", "Acquire::Languages"))
  ]
  lines = [
    *kept,
    'Acquire::Languages "none";',
    'Acquire::Retries "2";',
    f'Dir::State "{folder}";',
    f'Dir::State::lists "{folder}/lists";',
    'Dir::State::status "/var/lib/dpkg/status";',
    f'Dir::Cache "{folder}/cache";',
    f'Dir::Log "{folder}/log";',
    f'Dir::Etc::parts "{folder}/parts";',
    'Dir::Etc::main "none";',
    # apt would drop its rights to a user who cannot write here.
    'APT::Sandbox::User "root";',
  ]
  config = folder / "apt.conf"
  config.write_text("\n".join(lines) + "\n", "utf-8")
  return {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"}


def _run(command: Sequence[str], folder: pathlib.Path, env: dict) -> str:
  """Standard error of a failed command, "" if it went well."""
  result = subprocess.run(
    command, cwd=folder, env=env, capture_output=True, text=True
  )
  return result.stderr.strip() or "failed" if result.returncode else ""


def _unpack(archive: pathlib.Path, target: pathlib.Path) -> int:
  """Takes fonts and the copyright notice out of a .deb; returns bytes.

  Only regular files are written, each by its last name, so that no member,
  whatever it is called, can land outside `target`.
  """
  total = 0
  command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
  broken = FetchError(f"{archive.name} is not a whole Debian package.")
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
  ) as process:
    try:
      with tarfile.open(fileobj=process.stdout, mode="r|") as members:
        for member in members:
          name = pathlib.PurePosixPath(member.name).name
          wanted = name.lower().endswith((".ttf", ".otf", ".ttc", "copyright"))
          source = members.extractfile(member) if member.isreg() else None
          if wanted and source is not None:
            with open(target / name, "wb") as file:
              shutil.copyfileobj(source, file)
            total += member.size
    except tarfile.TarError as error:
      raise broken from error
  if process.returncode:
    raise broken
  return total


def fetch(
  packages: Iterable[str] = PACKAGES,
  *,
  target: pathlib.Path | None = None,
  report: Callable[[str], None] = print,
) -> None:
  """Puts the fonts of Debian packages into the cache, without root.

  apt checks the packages' signatures; what is there already is left alone.

  Args:
    packages: names; see PACKAGES.
    target: folder instead of `cache_dir()`.
    report: is told of the progress, a line at a time.

  Raises:
    FetchError: apt is absent or cannot reach its sources, or some packages
      could not be had; the others are then in place.
  """
  # Absolute, because apt runs in another folder: it would not find its private
  # settings, and use the system's.
  target = (target or cache_dir()).absolute()
  missing = []
  for package in packages:
    if (target / package).is_dir():
      report(f"{package}: already in {target}")
    else:
      missing.append(package)
  if not missing:
    return
  if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
    raise FetchError(
      "apt-get is not on this machine. Put font files into a folder that "
      "$BYT5_DIFFUSION_FONTS names instead (docs/fonts.md lists them)."
    )
  own = cache_dir().parent
  if target.is_relative_to(own):  # Compiled programs lie there too: private.
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
  target.mkdir(parents=True, exist_ok=True)
  # Beside the target, so that a finished folder can be renamed into place.
  with tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as name:
    folder = pathlib.Path(name)
    env = _private_apt(folder)
    report("Reading the package lists...")
    # One broken source among good ones fails this; the download decides.
    trouble = _run(["apt-get", "-q", "update"], folder, env)
    failed = [
      problem
      for package in missing
      if (problem := _fetch_one(package, folder, target, env, report))
    ]
  found_files.cache_clear()
  _fonts_for.cache_clear()
  if failed:
    raise FetchError("\n".join([*failed, *trouble.splitlines()[-3:]]))


def _fetch_one(
  package: str,
  folder: pathlib.Path,
  target: pathlib.Path,
  env: dict[str, str],
  report: Callable[[str], None],
) -> str:
  """Returns what went wrong, "" if nothing did."""
  report(f"{package}: downloading...")
  problem = _run(["apt-get", "-q", "download", package], folder, env)
  archives = list(folder.glob(f"{package}_*.deb"))
  if problem or not archives:
    return f"{package}: {problem.splitlines()[-1] if problem else 'no file'}"
  unpacked = folder / package
  unpacked.mkdir()
  try:
    size = _unpack(archives[0], unpacked)
  except FetchError as error:
    return f"{package}: {error}"
  try:
    os.rename(unpacked, target / package)
  except OSError:
    if not (target / package).is_dir():  # Else another process was faster.
      raise
  report(f"{package}: {size / 1e6:.0f} MB, {PACKAGES.get(package, '')}")
  return ""
