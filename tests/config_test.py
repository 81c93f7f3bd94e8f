"""Configuration: what is accepted means what gin means; the rest is refused."""

import pathlib
import re
import subprocess
import sys
import textwrap
import time

import gin
import pytest

from byt5_diffusion import (
  config,
  config_program,
  config_text,
  diffusion,
  model_gin,
  models,
  samplers,
)

TOY = """
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

class Net(Protocol):
  def apply(self, x): ...

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  width: int
  name: str = "a"

class Model:
  def __init__(self, *, config: Config, rate: float = 0.1, big: bool = False):
    self.config, self.rate, self.big = config, rate, big

@dataclasses.dataclass
class Other:
  x: int = 0

def constant(value: float) -> Callable[[int], float]:
  return lambda step: value

def count() -> int:
  return 3

def open_data(split: str = "train", *, seed: int = 0) -> str:
  return f"{split} {seed}"

def train(*, model: Model, steps: int, data: Callable[..., Any] = open_data,
          model_dir: str = "x", flag: bool = False, sizes: Sequence[int] = (),
          pair: tuple[int, int] = (1, 2), limit: int | None = None,
          lengths: Mapping[str, int] | None = None,
          rules: Sequence[tuple[str, str | None]] = (),
          rate_fn: Callable[[int], float] | None = None,
          kind: Literal["a", "b"] = "a", anything: Any = None,
          scale: float = 1.0, other: Other | None = None):
  return {**locals()}

def evaluate(*, model: Model, steps: int = 3):
  return {**locals()}
"""
BASE = """
from __gin__ import dynamic_registration
import toy

MODEL = @toy.Model()
toy.Model.config = @toy.Config()
toy.Config.width = %WIDTH
WIDTH = 4
STEPS = %gin.REQUIRED
toy.train:
  model = %MODEL
  steps = %STEPS
toy.evaluate.model = %MODEL
"""
ROOTS = ("toy.train", "toy.evaluate")


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
  (tmp_path / "toy.py").write_text(TOY)
  (tmp_path / "base.gin").write_text(BASE)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(
    config, "PROGRAMS", {"train": "toy.train", "eval": "toy.evaluate"}
  )
  monkeypatch.setattr(config, "_parsed", None)
  sys.modules.pop("toy", None)
  yield
  sys.modules.pop("toy", None)
  gin.clear_config()
  for name in [n for n in gin.config._REGISTRY._selector_map if "toy" in n]:
    gin.config._REGISTRY.pop(name)


def write(name, text):
  path = pathlib.Path(name)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(textwrap.dedent(text))
  return name


def parse(*bindings, files=("base.gin",), run_mode="train", **keywords):
  keywords.setdefault("roots", ROOTS)
  return config.parse(files, bindings, run_mode=run_mode, **keywords)


def refuse(*bindings, extra="", **keywords):
  """The one message with which a configuration is refused."""
  files = ["base.gin"]
  if extra:
    header = "from __gin__ import dynamic_registration\nimport toy\n"
    files.append(write("extra.gin", header + extra))
  with pytest.raises(config.ConfigError) as error:
    parse("STEPS=5", *bindings, files=files, **keywords)
  return str(error.value)


def call(name="train"):
  return gin.get_configurable(getattr(sys.modules["toy"], name))()


# --- what is accepted ---------------------------------------------------------


def test_the_parsed_run_is_what_gin_calls():
  parse("STEPS=5", "Model.rate=0.5")
  result = call()
  assert result["steps"] == 5
  assert result["model"].rate == 0.5
  assert result["model"].config.width == 4


@pytest.mark.parametrize("name", ["toy.train.steps", "train.steps", "STEPS"])
def test_command_line_names_need_no_imports(name):
  parse("STEPS=1", f"{name}=7")
  assert call()["steps"] == 7


def test_command_line_may_name_what_no_file_names():
  parse("STEPS=1", "train.rate_fn=@toy.constant()", "toy.constant.value=2.5")
  assert call()["rate_fn"](0) == 2.5


def test_later_files_win_and_includes_are_rooted(tmp_path, monkeypatch):
  write("root/parts/steps.gin", "STEPS = 6\nWIDTH = 8\n")
  write("root/whole.gin", 'include "base.gin"\ninclude "parts/steps.gin"\n')
  (tmp_path / "base.gin").rename(tmp_path / "root" / "base.gin")
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")
  parse(files=["whole.gin"], search_paths=[tmp_path / "root"])
  result = call()
  assert (result["steps"], result["model"].config.width) == (6, 8)


def test_scopes_mean_what_they_mean_to_gin():
  write(
    "scopes.gin",
    """
    from __gin__ import dynamic_registration
    import toy
    toy.train.data = @validation/toy.open_data
    toy.open_data.seed = 3
    validation/toy.open_data.split = "validation"
    """,
  )
  parse("STEPS=1", files=["base.gin", "scopes.gin"])
  assert call()["data"]() == "validation 3"


def test_values_of_every_kind_are_accepted():
  parse(
    "STEPS=1",
    "train.flag=True",
    "train.sizes=[1, 2]",
    "train.pair=(3, -4)",
    "train.limit=None",
    'train.lengths={"image": %WIDTH}',
    'train.rules=[("a", None), ("b", "data")]',
    'train.kind="b"',
    "train.scale=1",
    "train.anything=@toy.Other",
  )
  result = call()
  assert result["pair"] == (3, -4)
  assert result["lengths"] == {"image": 4}
  assert result["rules"] == [("a", None), ("b", "data")]


def test_a_run_asks_only_for_what_it_needs():
  parse(run_mode="eval")
  assert call("evaluate")["steps"] == 3


def test_overriding_a_reader_does_not_make_its_macro_a_mistake():
  program = parse("STEPS=1", "train.steps=2")
  assert call()["steps"] == 2
  assert "STEPS" not in program.macros()  # The record can be run again.


# --- what is refused ----------------------------------------------------------


@pytest.mark.parametrize(
  ("extra", "says"),
  [
    ("toy.train.step = 3", ["extra.gin:3", "step", "steps"]),
    ("toy.trian.steps = 3", ["extra.gin:3", "trian", "train"]),
    ("tay.train.steps = 3", ["extra.gin:3", "tay", "toy"]),
    ("toy.train.steps = %STEP", ["extra.gin:3", "%STEP", "STEPS"]),
    ("STEP = 3", ["extra.gin:3", "STEP", "STEPS", "nothing"]),
    ("toy.Other.x = 3", ["extra.gin:3", "Other.x", "nothing"]),
    ("other/toy.train.steps = 3", ["extra.gin:3", "other/toy.train.steps"]),
    ("toy.train.model = @toy.Model", ["@toy.Model()", "extra.gin:3"]),
    ("toy.train.model = @toy.Other()", ["Model", "Other", "extra.gin:3"]),
    ("toy.train.rate_fn = @toy.count()", ["int", "extra.gin:3"]),
    ("toy.train.steps = 3\ntoy.train.steps = 4", ["extra.gin:4", ":3"]),
    ("import os as toy", ["extra.gin:3", "toy is already toy"]),
    ("import toi", ["extra.gin:3", "no module toi"]),
    ("include 'bose.gin'", ["extra.gin:3", "no gin file bose.gin"]),
    ("include 'extra.gin'", ["extra.gin:3", "includes itself"]),
    ("WIDTH = %HEIGHT\nHEIGHT = %WIDTH", ["circle", "WIDTH"]),
    ("toy.Model.config = @toy.Model()", ["Config"]),
    ("WIDTH = 'a", ["extra.gin:3", "not valid gin"]),
    ("WIDTH = true", ["extra.gin:3", "True"]),
    ("from __gin__ import magic", ["extra.gin:3", "magic"]),
    ("toy.sys.exit.x = 1", ["extra.gin:3", "sys"]),
  ],
)
def test_a_mistake_in_a_file_says_where_and_what(extra, says):
  message = refuse(extra=extra)
  for part in says:
    assert part in message, message


@pytest.mark.parametrize(
  ("binding", "says"),
  [
    ("train.flag='False'", ["bool", "'False' (str)"]),
    ("train.flag=1", ["bool", "1 (int)"]),
    ("train.steps='3'", ["int", "'3' (str)"]),
    ("train.steps=3.0", ["int", "3.0 (float)"]),
    ("train.steps=True", ["int", "True (bool)"]),
    ("train.steps=None", ["int", "None"]),
    ("train.sizes='12'", ["Sequence", "'12' (str)"]),
    ("train.sizes=[1, '2']", ["'2'", "int"]),
    ("train.pair=[1, 2]", ["tuple"]),
    ("train.pair=(1, 2, 3)", ["2 elements", "3"]),
    ("train.limit='3'", ["int", "'3' (str)"]),
    ("train.lengths=[1]", ["Mapping", "list"]),
    ("train.lengths={'a': 'b'}", ["'b'", "int"]),
    ("train.rules=[('a', 1)]", ["str", "1"]),
    ("train.rate_fn=0.1", ["Callable", "0.1"]),
    ("train.kind='c'", ["Literal", "'c'"]),
    ("train.scale='1'", ["float", "'1' (str)"]),
    ("train.model=3", ["Model", "3"]),
    ("train.other=@toy.Model()", ["Other", "Model"]),
    ("WIDTH='4'", ["Config.width", "%WIDTH", "--gin.WIDTH", "int"]),
  ],
)
def test_a_wrong_type_is_refused_before_anything_runs(binding, says):
  message = refuse(binding)
  for part in [*says, f"--gin.{binding.partition('=')[0]}"]:
    assert part in message, message


@pytest.mark.parametrize(
  ("binding", "says"),
  [
    ("NAME=/tmp/x", ["""'--gin.NAME="/tmp/x"'"""]),
    ("STEPS", ["--gin.STEPS=VALUE"]),
    ("train.flag=true", ["write True"]),
    ("trian.steps=3", ["trian.steps", "train"]),
    ("STEPS=3\nimport os", ["not valid gin"]),
    ("x=@os.system", ["os.system"]),
  ],
)
def test_a_mistake_on_the_command_line_says_what_to_type(binding, says):
  message = refuse(binding)
  for part in says:
    assert part in message, message


def test_all_that_is_missing_is_listed_at_once():
  write(
    "more.gin",
    """
    from __gin__ import dynamic_registration
    import toy
    toy.train.model_dir = %MODEL_DIR
    MODEL_DIR = %gin.REQUIRED
    toy.train.rate_fn = @toy.constant()
    """,
  )
  with pytest.raises(config.ConfigError) as error:
    parse(files=["base.gin", "more.gin"])
  message = str(error.value)
  assert "STEPS" in message and "MODEL_DIR" in message
  assert "toy.constant needs value" in message
  assert "base.gin:9" in message and "more.gin:5" in message


def test_an_ambiguous_command_line_name_lists_its_meanings(tmp_path):
  (tmp_path / "toy_two.py").write_text(TOY)
  write(
    "two.gin",
    """
    from __gin__ import dynamic_registration
    import toy_two
    toy_two.Model.rate = 0.1
    """,
  )
  with pytest.raises(config.ConfigError, match=r"toy\.Model or toy_two\.Model"):
    parse("Model.rate=1.0", files=["base.gin", "two.gin"])
  parse("STEPS=1", "toy.Model.rate=1.0")


def test_a_missing_program_names_the_file_to_include():
  write("empty.gin", "")
  with pytest.raises(config.ConfigError, match=r"runs/train\.gin"):
    parse(files=["empty.gin"])


def test_an_unset_macro_names_the_file_that_provides_it():
  write(
    "sized.gin",
    """
    from __gin__ import dynamic_registration
    import toy
    toy.Config.width = %UNET_PATCH_SIZE
    """,
  )
  with pytest.raises(config.ConfigError, match=r"sizes/tiny\.gin"):
    parse("STEPS=1", files=["base.gin", "sized.gin"])


def test_a_failed_parse_leaves_the_earlier_one():
  parse("STEPS=5")
  refuse("train.flag=1")
  assert call()["steps"] == 5


# --- what is written ----------------------------------------------------------


def test_config_gin_reads_back_as_the_same_run(tmp_path):
  program = parse(
    "STEPS=5",
    "train.data=@validation/toy.open_data",
    'validation/open_data.split="va\'l\\n\\"\u00e9"',
    "train.scale=1e999",
    "train.pair=(-1, 2)",
    "train.rules=[" + ", ".join(f"('name_{i}', None)" for i in range(20)) + "]",
    "train.anything=({}, [], (), (1,), b'x')",
  )
  text = config.write_configs(tmp_path / "run")
  again = config.read([str(tmp_path / "run" / "config.gin")])
  assert {k: v.value for k, v in again.bindings.items()} == {
    k: v.value for k, v in program.bindings.items()
  }
  assert all(len(line) <= 80 for line in text.splitlines())


def test_two_modules_of_one_name_keep_their_own_alias(tmp_path):
  for package in ("one", "two"):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / "gin.py").write_text(TOY)
  write(
    "two.gin",
    """
    from __gin__ import dynamic_registration
    from one import gin as first
    from two import gin as second
    first.train.anything = @second.Other()
    second.Other.x = 3
    """,
  )
  program = config.read(["two.gin"])
  text = config_text.to_text(program)
  write("again.gin", text)
  again = config.read(["again.gin"])
  assert {k: v.value for k, v in again.bindings.items()} == {
    k: v.value for k, v in program.bindings.items()
  }


def test_a_differing_config_is_kept(tmp_path):
  folder = tmp_path / "run"
  for steps, files in ((5, 1), (5, 1), (6, 2), (7, 3)):
    parse(f"STEPS={steps}")
    config.write_configs(folder)
    assert len(list(folder.glob("config*.gin"))) == files
  kept = [folder / f"config{x}.gin" for x in ("-1", "-2", "")]
  assert [f"STEPS = {n}" in p.read_text() for n, p in enumerate(kept, 5)] == [
    True
  ] * 3
  assert {path.suffix for path in folder.iterdir()} == {".gin"}


def test_without_a_parsed_config_nothing_is_written(tmp_path):
  assert config.write_configs(tmp_path / "run") == ""
  assert not (tmp_path / "run").exists()


def test_model_gin_holds_only_what_the_model_reads(tmp_path, monkeypatch):
  monkeypatch.setattr(model_gin, "TRAINING_ONLY", ("rate",))
  parse(
    "STEPS=5",
    "Model.rate=0.5",
    "Model.big=True",
    "Other.x=1",
    "train.other=@toy.Other()",
  )
  config.write_configs(tmp_path)
  part = config.read([str(tmp_path / "model.gin")])
  assert sorted(map(str, part.bindings)) == [
    "MODEL",
    "WIDTH",
    "toy.Config.width",
    "toy.Model.big",
    "toy.Model.config",
  ]
  monkeypatch.setattr(model_gin, "ALLOWED", {"toy": ("Model", "Config")})
  monkeypatch.setattr(model_gin, "MODEL_CLASSES", ("toy.Model",))
  gin.clear_config()
  model = config.load_model_gin(tmp_path)
  assert (model.config.width, model.big, model.rate) == (4, True, 0.1)
  assert not gin.config._CONFIG  # gin's own state is untouched


def test_the_evaluator_agrees_with_gin(monkeypatch):
  write(
    "scoped.gin",
    """
    from __gin__ import dynamic_registration
    import toy
    toy.train.data = @a/toy.open_data
    toy.train.anything = @a/b/toy.open_data()
    toy.open_data.split = "plain"
    a/toy.open_data.seed = 1
    a/b/toy.open_data.seed = 2
    RUN = @toy.train()
    RUN/toy.Config.width = 9
    """,
  )
  program = config.read(["base.gin", "scoped.gin"], ["STEPS=5"])
  ours = model_gin.build(program, "RUN")
  gin.parse_config(config_text.to_text(program))
  theirs = gin.get_bindings("RUN/gin.macro")["value"]
  for result in (ours, theirs):
    assert result["data"]() == "plain 1"
    assert result["data"](seed=7) == "plain 7"
    assert result["anything"] == "plain 2"
  assert ours["model"].config.width == theirs["model"].config.width


# --- a stranger's model.gin ---------------------------------------------------

GOOD = """
from __gin__ import dynamic_registration
from byt5_diffusion import autoencoder
from byt5_diffusion import byt5
from byt5_diffusion import diffusion
from byt5_diffusion import models
from byt5_diffusion import unet
MODEL = @models.TextToImageModel()
models.TextToImageModel:
  text_encoder = @byt5.TextEncoder()
  unet = @unet.UNet()
  codec = @autoencoder.PixelCodec()
  schedule = @diffusion.linear_schedule()
  loss_weight = @diffusion.min_snr_weight()
  image_size = (16, 16)
  max_text_length = 8
  loss_normalizing_factor = 4
diffusion.min_snr_weight.gamma = 5.0
byt5.TextEncoder.config = @byt5.Byt5Config()
byt5.Byt5Config:
  embed_dim = 8
  num_heads = 2
  head_dim = 4
  mlp_dim = 8
  num_encoder_layers = 1
unet.UNet.config = @unet.UNetConfig()
unet.UNetConfig:
  channels = (8,)
  transformer_depth = (1,)
  num_heads = (2,)
  norm_groups = 4
  cross_attention_dim = 8
"""
HEAD = "from __gin__ import dynamic_registration\n"
OURS = HEAD + "from byt5_diffusion import models\n"
HOSTILE = {
  "import of a module": HEAD + "import os\nMODEL = @os.getcwd()",
  "from import": "from os import system\n" + GOOD,
  "submodule": HEAD + "from os import path\nMODEL = @path.exists()",
  "alias": HEAD + "import os as diffusion\nMODEL = @diffusion.getcwd()",
  "payload module": HEAD + "import payload\nMODEL = @payload.run()",
  "payload without use": HEAD + "import payload\n" + GOOD.lstrip(),
  "payload named as ours": HEAD + "from payload import diffusion\n",
  "attribute of ours": OURS + "MODEL = @models.jax.jit()",
  "os through ours": HEAD
  + "import byt5_diffusion.models as m\nMODEL = @m.os.system()\n"
  + 'm.os.system.command = "touch owned"',
  "package attribute": HEAD
  + "import byt5_diffusion\nMODEL = @byt5_diffusion.models.jax.eval_shape()",
  "dunder": OURS + "MODEL = @models.TextToImageModel.__init__.__globals__()",
  "module not in the table": HEAD
  + "from byt5_diffusion import trainer\nMODEL = @trainer.train()",
  "function not in the table": HEAD
  + "from byt5_diffusion import unet\nMODEL = @unet.upsample()",
  "builtins": HEAD + "import builtins\nMODEL = @builtins.exec()",
  "unimported builtins": HEAD + "MODEL = @builtins.exec()",
  "subprocess": HEAD
  + "import subprocess\nimport functools\nMODEL = @functools.partial()\n"
  + "functools.partial.func = @subprocess.run",
  "binding alone": GOOD + "import os\nos.system.command = 'touch owned'",
  "block alone": GOOD + "import os\nos.system:\n  command = 'touch owned'",
  "reference in a list": GOOD + "import os\nX = [{'a': (@os.system,)}]",
  "include": GOOD + "include '/etc/passwd'",
  "include a url": GOOD + "include 'http://localhost/x.gin'",
  "include a package": GOOD + "include 'payload/x.gin'",
  "constant": GOOD.replace("5.0", "%payload.CONSTANT"),
  "gin constant": GOOD + "X = @gin.constant()",
  "gin singleton": GOOD + "X = @a/gin.singleton()",
  "gin macro": GOOD + "X = @a/gin.macro()",
  "required": GOOD.replace("5.0", "%gin.REQUIRED"),
  "import of gin": HEAD + "import gin\nMODEL = @gin.parse_config()",
  "gin feature": "from __gin__ import payload\n",
  "macro loop": HEAD + "MODEL = %A\nA = %MODEL",
  "self reference": GOOD.replace("5.0", "@diffusion.min_snr_weight()"),
  "no model": HEAD + "X = 1",
  "wrong type": GOOD.replace("5.0", "'5.0'"),
  "refused by the constructor": GOOD.replace("5.0", "-1.0"),
  "unknown parameter": GOOD.replace("gamma", "gama"),
  "nested": GOOD + "X = " + "[" * 100_000,
  "huge number": GOOD.replace("5.0", "9" * 100_000),
  "huge": GOOD + "#" * 2_000_000,
  "not gin": "root:x:0:0:secret:/root:/bin/sh\n",
  "nul": GOOD + "\0",
  "not UTF-8": b"\xff\xfe" + GOOD.encode("utf-16-le"),
  "expression": GOOD.replace("5.0", "__import__('os').system('touch owned')"),
  "f-string": GOOD.replace("5.0", 'f\'{open("owned", "w")}\''),
}


@pytest.fixture
def stranger(tmp_path, monkeypatch):
  """A folder whose payload, if imported or called, leaves a file `owned`."""
  folder = tmp_path / "stranger"
  folder.mkdir()
  owned = tmp_path / "owned"
  payload = f"open({str(owned)!r}, 'w').close()\ndef run(): pass\n"
  (folder / "payload.py").write_text(payload)
  (folder / "sitecustomize.py").write_text(payload)
  monkeypatch.syspath_prepend(str(folder))
  monkeypatch.chdir(tmp_path)
  return folder, owned


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_gin_runs_nothing(stranger, name):
  folder, owned = stranger
  content = HOSTILE[name]
  data = content if isinstance(content, bytes) else content.encode()
  (folder / "model.gin").write_bytes(data)
  before = set(sys.modules)
  with pytest.raises(config.ConfigError) as error:
    config.load_model_gin(folder)
  assert str(folder / "model.gin") in str(error.value)
  assert len(str(error.value)) < 2000
  assert not owned.exists() and not pathlib.Path("owned").exists()
  foreign = {
    module
    for module in set(sys.modules) - before
    if module.partition(".")[0] in ("payload", "subprocess", "toy")
  }
  assert not foreign


@pytest.mark.parametrize("kind", ["absent", "folder", "pipe", "link", "device"])
def test_a_model_gin_that_is_no_file_is_refused(stranger, kind, tmp_path):
  folder, _ = stranger
  path = folder / "model.gin"
  secret = tmp_path / "secret"
  secret.write_text("root:x:0:0:hunter2\n")
  if kind == "folder":
    path.mkdir()
  elif kind == "pipe":
    import os

    os.mkfifo(path)
  elif kind == "link":
    path.symlink_to(secret)
  elif kind == "device":
    path.symlink_to("/dev/zero")
  with pytest.raises(config.ConfigError) as error:
    config.load_model_gin(path if kind == "folder" else folder)
  assert "hunter2" not in str(error.value)


def test_a_refused_file_imports_nothing_at_all(stranger):
  """In a process of its own: not even this package's networks."""
  folder, owned = stranger
  (folder / "model.gin").write_text(OURS + "import payload\nMODEL = 1")
  code = (
    "import sys\n"
    "from byt5_diffusion import config\n"
    "before = set(sys.modules)\n"
    "try:\n"
    f"  config.load_model_gin({str(folder)!r})\n"
    "except config.ConfigError as error:\n"
    "  print(sorted(set(sys.modules) - before))\n"
  )
  root = pathlib.Path(config.__file__).parent.parent
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=root,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == "[]"
  assert not owned.exists()


def test_a_good_model_gin_is_built_even_through_a_link(stranger, tmp_path):
  folder, _ = stranger
  blob = tmp_path / "blob"
  blob.write_text(GOOD)
  (folder / "model.gin").symlink_to(blob)
  model = config.load_model_gin(folder)
  assert isinstance(model, models.TextToImageModel)


def test_trust_config_lifts_the_limits(stranger):
  folder, owned = stranger
  (folder / "model.gin").write_text(HOSTILE["payload module"])
  config.load_model_gin(folder, trust_config=True)
  assert owned.exists()


def bound_to(parameter, value):
  """GOOD with another value, whether it set that parameter or not."""
  pattern = rf"^(  {parameter} = ).*$"
  text, count = re.subn(pattern, rf"\g<1>{value}", GOOD, flags=re.MULTILINE)
  targets = {
    "num_train_timesteps": "diffusion.linear_schedule",
    "num_res_blocks": "unet.UNetConfig",
    "dtype": "unet.UNetConfig",
    "vocab_size": "byt5.Byt5Config",
  }
  target = targets.get(parameter, "models.TextToImageModel")
  return text if count else f"{GOOD}{target}.{parameter} = {value}\n"


def levels(count, value):
  """L0 = value with %L1 inside, L1 = ..., and the last one a 1."""
  lines = [f"L{i} = {value(i)}\n" for i in range(count)]
  text = bound_to("input_vocabulary", "%L0")
  return text + "".join(lines) + f"L{count} = 1\n"


def reader_with(parameter, value):
  """GOOD's model is one that reads; one of its parts is this instead."""
  text = GOOD.replace(
    "from byt5_diffusion import models",
    "from byt5_diffusion import byt5_decoder\nfrom byt5_diffusion import models"
    "\nfrom byt5_diffusion import ocr\nfrom byt5_diffusion import patches",
  ).replace("MODEL = @models.TextToImageModel()", "MODEL = @ocr.OcrModel()")
  text += """
ocr.OcrModel:
  features = @ocr.PatchFeatures()
  decoder = @byt5_decoder.TextDecoder()
  max_text_length = 8
  loss_normalizing_factor = 4
byt5_decoder.TextDecoder.config = @byt5.Byt5Config()
ocr.PatchFeatures:
  encoder = @patches.PatchEncoder()
  patch_size = 4
  max_patches = 4
patches.PatchEncoder.config = @patches.PatchConfig()
patches.PatchConfig:
  embed_dim = 8
  num_heads = 2
  head_dim = 4
  mlp_dim = 8
  num_layers = 1
  patch_size = 4
  max_patches = 4
"""
  changed, count = re.subn(
    rf"^(  {parameter} = ).*$", rf"\g<1>{value}", text, flags=re.MULTILINE
  )
  assert count == 1
  return changed


LIMITS = {
  "exponential macros": (
    levels(20, lambda i: "[" + ", ".join([f"%L{i + 1}"] * 4) + "]"),
    "10000 evaluations",
  ),
  "exponential dicts": (
    levels(20, lambda i: f"{{1: %L{i + 1}, 2: %L{i + 1}, 3: %L{i + 1}}}"),
    "10000 evaluations",
  ),
  "exponential references": (
    bound_to("denoise_decorator", "@s0/guidance.compose()").replace(
      "from byt5_diffusion import models",
      "from byt5_diffusion import guidance\nfrom byt5_diffusion import models",
    )
    + "".join(
      f"s{i}/guidance.compose.decorators = [{call}, {call}, {call}]\n"
      for i in range(20)
      for call in [f"@s{i + 1}/guidance.compose()"]
    )
    + "s20/guidance.compose.decorators = []\n",
    "10000 evaluations",
  ),
  "a chain": (levels(900, lambda i: f"%L{i + 1}"), "nested too deeply"),
  "many statements": (levels(1500, lambda i: f"%L{i + 1}"), "1000 statements"),
  "a long scope": (GOOD + "a/" * 50_000 + "X = 1\n", "more than 8 names"),
  "many unknown macros": (
    GOOD + "X = [" + ", ".join(f"%A{i}" for i in range(20_000)) + "]\n",
    "%A0 is not defined",
  ),
  "a literal": (HEAD + "MODEL = 5\n", "must be a model"),
  "a list of models": (
    GOOD.replace("@models.TextToImageModel()", "[@models.TextToImageModel()]"),
    "must be a model",
  ),
  "a class": (
    GOOD.replace("@models.TextToImageModel()", "@models.TextToImageModel"),
    "must be a model",
  ),
  "another object": (
    GOOD.replace("@models.TextToImageModel()", "@unet.UNet()"),
    "must be a model",
  ),
  "a literal codec": (bound_to("codec", "'latin-1'"), "codec"),
  "a codec's class": (bound_to("codec", "@autoencoder.PixelCodec"), "codec"),
  "a foreign codec": (bound_to("codec", "@unet.UNet()"), "codec"),
  "a config for text_encoder": (
    bound_to("text_encoder", "@byt5.Byt5Config()"),
    "text_encoder must be @byt5.TextEncoder(), not @byt5.Byt5Config()",
  ),
  "another network for unet": (
    bound_to("unet", "%OTHER") + "OTHER = @byt5.TextEncoder()\n",
    "unet must be @unet.UNet(), not @byt5.TextEncoder()",
  ),
  "a config for encoder": (
    reader_with("encoder", "@patches.PatchConfig()"),
    "encoder must be @patches.PatchEncoder(), not @patches.PatchConfig()",
  ),
  "a model for features": (
    reader_with("features", "@a/ocr.OcrModel()")
    + "a/ocr.OcrModel.features = @ocr.PatchFeatures()\n",
    "features must be @ocr.PatchFeatures() or @ocr.UNetFeatures(), not"
    " @a/ocr.OcrModel()",
  ),
  "another network for decoder": (
    reader_with("decoder", "@byt5.TextEncoder()"),
    "decoder must be @byt5_decoder.TextDecoder(), not @byt5.TextEncoder()",
  ),
  "spacing": (bound_to("step_spacing", "'even'"), "step_spacing='even'"),
  "long spacing": (bound_to("step_spacing", repr("x" * 90_000)), "spacing"),
  "dtype": (bound_to("dtype", "'float31'"), "dtype = 'float31'"),
  "timesteps": (
    bound_to("num_train_timesteps", "1000000000"),
    "num_train_timesteps = 1000000000 is not in 1 .. 100000",
  ),
  "steps": (bound_to("num_sampling_steps", "10001"), "1 .. 10000"),
  "no steps": (bound_to("num_sampling_steps", "0"), "num_sampling_steps"),
  "side": (bound_to("image_size", "(16, 16385)"), "image_size = 16385"),
  "negative side": (bound_to("image_size", "(-16, 16)"), "image_size = -16"),
  "length": (bound_to("max_text_length", "65537"), "max_text_length"),
  "layers": (bound_to("num_encoder_layers", "1001"), "0 .. 1000"),
  "blocks": (bound_to("num_res_blocks", "1001"), "num_res_blocks"),
  "blocks of both ways": (bound_to("num_res_blocks", "600"), "than 1000"),
  "width": (bound_to("channels", "(65540,)"), "channels = 65540"),
  "by a macro": (bound_to("mlp_dim", "%W") + "W = 65537\n", "mlp_dim"),
  "levels": (bound_to("channels", str((8,) * 17)), "17 entries"),
  "vocabulary": (bound_to("vocab_size", "1" * 4000), "vocab_size"),
  "elsewhere": (
    bound_to("output_vocabulary", "[{1: 2147483649}]"),
    "output_vocabulary = 2147483649",
  ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_model_gin_cannot_ask_for_endless_work(stranger, name):
  folder, _ = stranger
  text, says = LIMITS[name]
  (folder / "model.gin").write_text(text)
  start = time.monotonic()
  with pytest.raises(config.ConfigError, match=re.escape(says)) as error:
    config.load_model_gin(folder)
  assert time.monotonic() - start < 10
  assert str(folder / "model.gin") in str(error.value)
  assert len(str(error.value)) < 2000


@pytest.mark.parametrize("name", ["encoder", "features", "decoder"])
def test_a_wrong_class_takes_one_line(stranger, name):
  folder, _ = stranger
  (folder / "model.gin").write_text(reader_with(name, "@unet.UNet()"))
  with pytest.raises(config.ConfigError) as error:
    config.load_model_gin(folder)
  assert "\n" not in str(error.value), error.value


def test_a_reader_of_the_right_classes_is_built(stranger):
  folder, _ = stranger
  text = reader_with("encoder", "%ENCODER")
  (folder / "model.gin").write_text(text + "ENCODER = @patches.PatchEncoder()")
  assert config.load_model_gin(folder).features.patch_size == 4


def test_trust_config_lifts_the_bounds(stranger):
  folder, _ = stranger
  (folder / "model.gin").write_text(bound_to("num_sampling_steps", "10001"))
  model = config.load_model_gin(folder, trust_config=True)
  assert model.num_sampling_steps == 10001
  (folder / "model.gin").write_text(HEAD + "MODEL = 5\n")
  with pytest.raises(config.ConfigError, match="must be a model"):
    config.load_model_gin(folder, trust_config=True)


def test_step_spacings_are_the_samplers():
  schedule = diffusion.cosine_schedule()
  for spacing in samplers.STEP_SPACINGS:
    assert len(samplers.log_snr_steps(schedule, 3, spacing=spacing)) == 4


def test_every_allowed_name_exists():
  import importlib

  for module, names in model_gin.ALLOWED.items():
    for name in names:
      assert callable(getattr(importlib.import_module(module), name))


def test_nearest_ignores_case_and_gives_up_on_strangers():
  assert "TRAIN_STEPS" in config_program.nearest("train_stps", ["TRAIN_STEPS"])
  assert config_program.nearest("zzz", ["TRAIN_STEPS"]) == ""
