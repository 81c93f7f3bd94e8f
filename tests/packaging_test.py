"""A wheel, installed and used far away from the checkout."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

import byt5_diffusion

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*command: str | pathlib.Path, cwd: pathlib.Path) -> str:
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    [*map(str, command)], cwd=cwd, env=environment, capture_output=True,
    text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Built from a copy: what an earlier build left behind must not matter."""
  folder = tmp_path_factory.mktemp("wheel")
  ignored = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "benchmarks"
  )
  shutil.copytree(ROOT, folder / "source", ignore=ignored)
  setuptools = importlib.metadata.version("setuptools")
  # Else pip fetches one that is new enough.
  here = ["--no-build-isolation"] if int(setuptools.split(".")[0]) >= 77 else []
  run(
    *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *here),
    *("-w", folder, folder / "source"),
    cwd=folder,
  )
  [path] = folder.glob("*.whl")
  return path


@pytest.fixture(scope="module")
def python(
  tmp_path_factory: pytest.TempPathFactory, wheel: pathlib.Path
) -> pathlib.Path:
  """An environment with the wheel and this one's libraries."""
  folder = tmp_path_factory.mktemp("environment")
  try:
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
  except AssertionError as error:
    pytest.skip(f"this Python cannot make an environment: {error}")
  python = folder / "bin" / "python"
  run(
    *(sys.executable, "-m", "pip", "--python", python, "install", "-q"),
    *("--no-deps", "--no-index", wheel),
    cwd=folder,
  )
  return python


def site_packages(python: pathlib.Path) -> pathlib.Path:
  [folder] = (python.parent.parent / "lib").glob("python*/site-packages")
  return folder


@pytest.fixture(scope="module")
def with_libraries(python: pathlib.Path) -> pathlib.Path:
  """The same, and this environment's libraries after its own."""
  libraries = sysconfig.get_paths()["purelib"]
  (site_packages(python) / "libraries.pth").write_text(f"{libraries}\n")
  return python


def test_the_wheel_has_all_that_a_user_needs(wheel: pathlib.Path) -> None:
  names = set(zipfile.ZipFile(wheel).namelist())
  assert {"byt5_diffusion/py.typed", "byt5_diffusion/tasks/typography.py"} <= (
    names
  )
  tracked = {
    path.relative_to(ROOT).as_posix()
    for pattern in ("byt5_diffusion/**/*.py", "tasks/*.py", "gin/**/*.gin")
    for path in ROOT.glob(pattern)
  }
  wanted = {
    name if name.startswith("byt5_diffusion/") else f"byt5_diffusion/{name}"
    for name in tracked
  }
  assert wanted <= names
  assert any(name.endswith("licenses/LICENSE") for name in names)
  tops = {name.partition("/")[0] for name in names}
  version = byt5_diffusion.__version__
  assert tops == {"byt5_diffusion", f"byt5_diffusion-{version}.dist-info"}


def test_it_works_from_any_directory(
  with_libraries: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  python = with_libraries
  site = site_packages(python)
  said = run(
    *(python, "-c"),
    "import byt5_diffusion, gin\n"
    "from byt5_diffusion import config\n"
    "from byt5_diffusion.tasks import image_caption_folder, typography\n"
    "print(byt5_diffusion.__file__)\n"
    "print(config.gin_root())\n"
    "print(typography.__file__)\n"
    "gin.parse_config",
    cwd=tmp_path,
  )
  for line in said.splitlines():
    assert pathlib.Path(line).is_relative_to(site / "byt5_diffusion"), line
  command = python.parent / "byt5-diffusion"
  version = run(command, "--version", cwd=tmp_path)
  assert version.split() == ["byt5-diffusion", byt5_diffusion.__version__]
  said = run(
    *(python, "-m", "byt5_diffusion.main", "--run_mode=train", "--dry_run"),
    *("--gin_file=experiments/tiny.gin", "--gin.MODEL_DIR='x'"),
    cwd=tmp_path,
  )
  assert "trainer.train" in said and "MODEL_DIR = 'x'" in said
  assert not list(tmp_path.iterdir())


def test_it_comes_and_goes_without_a_trace(python: pathlib.Path) -> None:
  """No `gin`, `tasks` or `tools` of ours beside the package."""
  site = site_packages(python)
  ours = {path.name for path in site.iterdir()} - {"libraries.pth"}
  dist_info = f"byt5_diffusion-{byt5_diffusion.__version__}.dist-info"
  assert ours - {"__pycache__"} == {"byt5_diffusion", dist_info}
  run(
    *(sys.executable, "-m", "pip", "--python", python, "uninstall", "-q", "-y"),
    "byt5-diffusion",
    cwd=site,
  )
  assert not (site / "byt5_diffusion").exists()
