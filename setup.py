"""Packaging: ranges, not pins; constraints.txt has the tested versions."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
INIT = (ROOT / "byt5_diffusion" / "__init__.py").read_text("utf-8")

# Training from prepared shards, sampling and export need these alone.
CORE = [
  "absl-py>=2.1",
  "array_record>=0.8; platform_system != 'Windows'",
  "clu>=0.0.12",
  "flax>=0.12,<0.14",
  "gin-config>=0.5,<0.6",
  "grain>=0.2.12",
  "jax>=0.10,<0.12",
  "msgpack>=1.0.5",
  "numpy>=2.0",
  "optax>=0.2.6,<0.4",
  "orbax-checkpoint>=0.12,<0.14",
  # Older ones take minutes and gigabytes over hostile comments and EXIF blocks.
  "pillow>=13",
  "regex>=2024.11",
  "tensorboardX>=2.6",
  "tqdm>=4.66",
]
EXTRAS = {
  # Live SeqIO pipelines and `prepare`.
  "data": [
    "fsspec>=2024.6",
    "py3langid>=0.3",
    "pyarrow>=17",
    "seqio>=0.0.19",
    "simplejpeg>=1.8",
    "tensorflow>=2.19",
  ],
  # Language identification as mC4 did it.
  "cld3": ["cld3-py>=3.1"],
  # Pages of HTML and SVG: WeasyPrint wants the system's libpango.
  "layouts": [
    "pypdfium2>=4.30",
    "resvg-py>=0.2",
    "weasyprint>=66,<71",
  ],
  # Mean average precision of boxes.
  "scores": ["pycocotools>=2.0.8"],
  # Pictures of data sets that are lists of addresses.
  "download": ["img2dataset>=1.46"],
  # Tokens of a second text encoder, to draw by without SeqIO.
  "semantic": ["sentencepiece>=0.2.1"],
  # Drawing text: needs no library of the system.
  "typography": ["babel>=2.14", "uharfbuzz>=0.57"],
  # Other backends for it: Pango wants libpango and libcairo, skia libEGL.
  "pango": ["cairocffi>=1.7", "pangocairocffi>=0.7"],
  "skia": ["skia-python>=138"],
  "dev": [
    "hypothesis>=6.100",
    "mmh3>=5.0",
    "mypy>=1.15",
    "pytest>=8.3",
    "ruff>=0.11",
    "scipy>=1.14",
  ],
  # Peers for parity tests. The exact torch keeps pip from resolving to a
  # newer build with gigabytes of CUDA packages.
  "parity": [
    "diffusers>=0.35",
    "torch==2.13.0",
    "transformers>=5.0",
    "webdataset>=0.2.100",
  ],
  # What T5X needs besides; itself and airio are not on PyPI (docs/t5x.md).
  "t5x": [
    "cached_property>=2.0",
    "chex>=0.1.89",
    "fiddle>=0.3",
    "jaxtyping>=0.3",
    "jestimator>=0.3.3",
    "tensorboard>=2.19",
  ],
}
EXTRAS["all"] = EXTRAS["data"] + EXTRAS["semantic"] + EXTRAS["typography"]


def gin_files() -> dict[str, list[str]]:
  """Package -> gin files: a wheel has `gin/` inside the package."""
  folders = [p for p in (ROOT / "gin").rglob("*") if p.is_dir()]
  return {
    ".".join(["byt5_diffusion", *p.relative_to(ROOT).parts]): ["*.gin"]
    for p in [ROOT / "gin", *folders]
  }


GIN = gin_files()

setuptools.setup(
  name="byt5-diffusion",
  version=re.search(r'__version__ = "(.*)"', INIT).group(1),
  description="Text-to-image diffusion models that can spell, in any script",
  long_description=(ROOT / "README.md").read_text("utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  packages=[
    "byt5_diffusion",
    "byt5_diffusion.conversion",
    "byt5_diffusion.data",
    "byt5_diffusion.data.downloading",
    "byt5_diffusion.data.pages",
    "byt5_diffusion.data.rows",
    "byt5_diffusion.data.sets",
    "byt5_diffusion.data.writing",
    "byt5_diffusion.tasks",
    *GIN,
  ],
  package_dir={
    "byt5_diffusion.tasks": "tasks",
    **{name: name.split(".", 1)[1].replace(".", "/") for name in GIN},
  },
  package_data={**GIN, "byt5_diffusion": ["py.typed"]},
  install_requires=CORE,
  extras_require=EXTRAS,
  entry_points={
    "console_scripts": ["byt5-diffusion = byt5_diffusion.cli:main"],
  },
  classifiers=[
    "License :: OSI Approved :: Apache Software License",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
  ],
)
