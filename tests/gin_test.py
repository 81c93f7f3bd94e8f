"""The gin files: each is read, fits the code, and builds what it says."""

import fnmatch
import importlib
import os
import re

import calligraphy_test
import gin
import jax
import laion_test
import numpy as np
import page_xml_test
import pytest
import scene_text_test
import toy_pages
import toy_pieces
import wit_test
from PIL import Image

from byt5_diffusion import (
  config,
  config_checks,
  config_program,
  config_source,
  feature_converters,
)
from byt5_diffusion import partitioning as partitioning_lib

ROOT = config.gin_root()
EVERY_FILE = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.gin"))
# They name T5X, and its own main reads them: tests/t5x does so.
T5X_FILES = [x for x in EVERY_FILE if x.startswith("runs/t5x_")]
FILES = [name for name in EVERY_FILE if name not in T5X_FILES]
EXPERIMENTS = [name for name in FILES if name.startswith("experiments/")]
PARTS = ("schedules", "optimizers", "partitioning", "data", "sizes")
OTHERS = [name for name in FILES if name.partition("/")[0] in PARTS]
# Where a program writes.
OUTPUT_OF = {
  "train": "MODEL_DIR",
  "eval": "EVAL_OUTPUT_DIR",
  "infer": "INFER_OUTPUT_DIR",
  "read": "READ_OUTPUT_DIR",
}
# What training starts from: macros that a file leaves to the command line.
TO_START_FROM = {
  "runs/finetune.gin": ("INITIAL_CHECKPOINT_PATH",),
  "runs/finetune_published.gin": ("UNET_PATH", "BYT5_PATH"),
}
ONE_LEVEL = (
  "UNET_CHANNELS=(48,)",
  "UNET_TRANSFORMER_DEPTH=(1,)",
  "UNET_NUM_HEADS=(2,)",
)


def write_folder(path):
  Image.new("RGB", (64, 64)).save(path / "a.png")
  (path / "a.txt").write_text("a")


# Kinds of tasks -> writes a small data set of theirs into a folder.
USERS = {
  **dict.fromkeys(
    ["grapheme_words_reading", "grapheme_scenes"],
    lambda path: scene_text_test.hiertext_folder(
      path, scene_text_test.two_lines()
    ),
  ),
  **dict.fromkeys(
    ["kuzushiji_characters", "kuzushiji_lines_reading"], calligraphy_test.book
  ),
  "handwriting_lines_reading": lambda path: page_xml_test.folder_with(
    path, page_xml_test.PAGE
  ),
  "image_caption_folder": write_folder,
  "image_caption_folder_reading": write_folder,
  "laion_high_resolution": lambda path: laion_test.folder_of(
    path, [(laion_test.known(), laion_test.picture())]
  ),
  "wit": lambda path: wit_test.base_file(
    path / "train.parquet",
    [wit_test.base("https://a.org/x", [wit_test.page("en", "A sign here")])],
  ),
}
# Macros that a run leaves to the recipe or the command line.
LEFT_OPEN = ("TRAIN_STEPS", "BATCH_SIZE")


@pytest.fixture(autouse=True)
def clean_gin(monkeypatch):
  monkeypatch.setattr(config, "_parsed", None)
  yield
  gin.clear_config()


def programs(name):
  """The programs that a recipe says anything of."""
  targets = config.read([name]).targets()
  return [mode for mode, target in config.PROGRAMS.items() if target in targets]


RUNS = [(name, mode) for name in EXPERIMENTS for mode in programs(name)]


def outputs(name):
  """What a recipe leaves to the command line."""
  folders = [OUTPUT_OF[mode] for mode in programs(name)]
  return [f"{macro}='/tmp/x'" for macro in [*folders, *sources(name)]]


def sources(name):
  """Macros of the weights that a recipe's training starts from."""
  return [
    macro
    for file, macros in TO_START_FROM.items()
    if f'include "{file}"' in text(name)
    for macro in macros
  ]


def text(name):
  return (ROOT / name).read_text("utf-8")


def alone(name):
  """What one file says, what it includes left out."""
  reader = config_source.Reader()
  kept = re.sub(r"^include .*$", "", text(name), flags=re.MULTILINE)
  reader.read_text(kept, name)
  return reader.program


def header(name):
  """{"Provides": "...", ...} of a file's first comment."""
  lines = []
  for line in text(name).splitlines():
    if not line.startswith("#"):
      break
    lines.append(line.lstrip("# "))
  found = re.split(r"(Provides|Requires|Often overridden): ", " ".join(lines))
  return dict(zip(found[1::2], found[2::2], strict=True))


def used_macros(program):
  return {
    leaf.name
    for binding in program.bindings.values()
    for leaf in config_program.leaves(binding.value)
    if isinstance(leaf, config_program.Macro)
    and leaf.name != config_program.REQUIRED
  }


def build():
  """%MODEL, as gin builds it."""
  return gin.get_bindings("MODEL/gin.macro")["value"]


def variables(model):
  shapes = model.input_shapes(2)
  return jax.eval_shape(
    lambda rng: model.get_initial_variables(rng, shapes), jax.random.key(0)
  )


@pytest.fixture(scope="module")
def tiny():
  """Shapes and axes of experiments/tiny.gin's variables."""
  config.parse(
    ["experiments/tiny.gin"], outputs("experiments/tiny.gin"), run_mode="train"
  )
  shapes = variables(build())
  gin.clear_config()
  return shapes


# --- the files ---------------------------------------------------------------


def test_no_init_file_hides_gin_itself():
  assert not list(ROOT.rglob("*.py"))
  assert hasattr(gin, "parse_config")


@pytest.mark.parametrize("name", FILES)
def test_the_names_of_a_file_exist(name):
  checker = config_checks.Checker(alone(name), ROOT)
  assert not [p for p in map(checker._import, checker.program.imports) if p]
  assert not list(checker._unknown_targets())
  assert not list(checker._unknown_parameters())


@pytest.mark.parametrize("name", FILES)
def test_a_header_says_what_is_provided_and_required(name):
  said = header(name)
  assert set(said) == {"Provides", "Requires", "Often overridden"}
  if name.startswith("experiments/"):
    return
  program = alone(name)
  patterns = re.findall(r"[A-Z][A-Z0-9_*]+", said["Provides"])
  required = re.findall(r"[A-Z][A-Z0-9_*]+", said["Requires"])
  for macro in program.macros():
    if name.startswith("runs/"):
      continue
    words = [*patterns, "IMAGE_HEIGHT"]
    assert any(fnmatch.fnmatch(macro, p) for p in words), macro
  for pattern in patterns:
    assert fnmatch.filter(program.macros(), pattern), pattern
  missing = used_macros(program) - set(program.macros())
  if not name.startswith("runs/") or name == "runs/train.gin":
    for macro in missing:
      assert any(fnmatch.fnmatch(macro, p) for p in required), macro


@pytest.mark.parametrize("name", FILES)
def test_macros_named_as_often_overridden_are_there(name):
  program = config.read([name])
  for macro in re.findall(
    r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", header(name)["Often overridden"]
  ):
    assert macro in program.macros() or macro in used_macros(program), macro


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("sizes/")])
def test_sizes_are_integers_with_a_source(name):
  assert "Source:" in text(name)
  for binding in alone(name).bindings.values():
    for leaf in config_program.leaves(binding.value):
      assert type(leaf) is int


@pytest.mark.parametrize(
  "name", [n for n in FILES if n.startswith("partitioning/")]
)
def test_partitioning_is_lists_of_pairs(name):
  program = alone(name)
  assert sorted(program.macros()) == ["LOGICAL_AXIS_RULES", "NUM_PARTITIONS"]
  assert not program.imports
  names = [axis for axis, _ in program.macro("LOGICAL_AXIS_RULES")]
  standard = [axis for axis, _ in partitioning_lib.STANDARD_LOGICAL_AXIS_RULES]
  assert sorted(names) == sorted(standard)


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("data/")])
def test_lengths_are_those_of_the_features(name):
  program = alone(name)
  lengths = program.macro("TASK_FEATURE_LENGTHS")
  converter = program.macro("FEATURE_CONVERTER_CLS").target.split(".")[-1]
  features = getattr(feature_converters, converter).FEATURES
  feature_converters.check_lengths(lengths, features)
  if name.endswith("_reading.gin"):
    assert features is feature_converters.READING_FEATURES
    assert lengths["patches"] == program.macro("MAX_PATCHES")
  else:
    assert lengths["image"] == program.macro("IMAGE_SIZE")[0]
  if name.endswith("_semantic.gin"):
    assert features is feature_converters.SEMANTIC_FEATURES
    assert lengths["semantic_tokens"] == program.macro("MAX_SEMANTIC_LENGTH")
  assert lengths["text_tokens"] == program.macro("MAX_TEXT_LENGTH")
  limit = program.macro("MAX_TEXT_LENGTH") - 1
  for caption in program.macro("SAMPLE_TEXTS"):
    assert len(caption.encode()) <= limit


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("data/")])
def test_tasks_are_registered_and_give_what_the_lengths_say(
  name, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  seqio = pytest.importorskip("seqio")
  pytest.importorskip("byt5_diffusion.tasks", reason="needs `pip install -e .`")
  program = alone(name)
  module = importlib.import_module(program.macro("MIXTURE_OR_TASK_MODULE"))
  task_name = program.macro("MIXTURE_OR_TASK_NAME")
  kind = task_name.partition(":")[0]
  if kind in USERS:  # the folder is the user's
    USERS[kind](tmp_path)
    task_name = re.sub(":.*?@", f":{tmp_path}@", task_name)
  if name.startswith("data/document_"):
    make = toy_pages.docvqa if "question" in name else toy_pages.doclaynet
    task_name = task_name.replace(":documents@", f":{make(tmp_path)}@")
  if name.endswith("_semantic.gin"):
    spiece = toy_pieces.write(tmp_path / "spiece.model")
    task_name = task_name.replace("=spiece.model", f"={spiece}")
  task_name = getattr(module, "register", str)(task_name)
  task = seqio.get_mixture_or_task(task_name)
  lengths = program.macro("TASK_FEATURE_LENGTHS")
  assert set(task.output_features) == set(lengths)
  ds = task.get_dataset(lengths, split="train", shuffle=False)
  if name.endswith("_reading.gin"):
    width = 2 + 3 * program.macro("PATCH_SIZE") ** 2
    assert ds.element_spec["patches"].shape == (None, width)
  else:
    size = program.macro("IMAGE_SIZE")
    assert ds.element_spec["image"].shape == (*size, 3)


def include_depth(name):
  inner = re.findall(r'^include "(.*)"', text(name), flags=re.MULTILINE)
  return max((1 + include_depth(file) for file in inner), default=0)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_includes_and_at_most_ten_overrides(name):
  assert len(alone(name).bindings) <= 10
  assert 1 <= include_depth(name) <= 2


def test_only_the_files_for_t5x_name_it():
  names_it = re.compile(r"^(from|import|include) .*t5x", re.MULTILINE)
  assert [x for x in EVERY_FILE if names_it.search(text(x))] == T5X_FILES
  for name in T5X_FILES:
    assert set(header(name)) == {"Provides", "Requires", "Often overridden"}


# --- what they build ---------------------------------------------------------


def test_every_recipe_trains_evaluates_and_shows_what_was_learnt():
  for name in EXPERIMENTS:
    assert set(programs(name)) in (
      {"train", "eval", "infer"},
      {"train", "eval", "read"},
      {"train", "eval", "infer", "read"},
    )


@pytest.mark.parametrize(("name", "run_mode"), RUNS)
def test_one_recipe_serves_every_program(name, run_mode):
  """Names, types, required and dead bindings are what `parse` checks."""
  config.parse([name], outputs(name), run_mode=run_mode)
  assert gin.config_is_locked()


@pytest.mark.parametrize(("name", "run_mode"), RUNS)
def test_a_recipe_asks_for_its_folders_only(name, run_mode):
  macros = {"MODEL_DIR", OUTPUT_OF[run_mode]}
  if run_mode == "train":
    macros |= set(sources(name))
  with pytest.raises(config.ConfigError) as error:
    config.parse([name], run_mode=run_mode)
  found = re.findall(r": (\w+) is not set", str(error.value))
  assert sorted(found) == sorted(macros)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_builds_and_its_model_gin_builds_the_same(name, tmp_path):
  config.parse([name], outputs(name), run_mode="train")
  model = build()
  theirs = variables(model)
  leaves = jax.tree.leaves(theirs["params"])
  assert leaves and all(leaf.dtype == np.float32 for leaf in leaves)
  frozen = "frozen" in name or "runs/finetune_published.gin" in text(name)
  assert ("frozen" in theirs) == frozen
  assert model.optimizer_def is not None
  config.write_configs(tmp_path)
  gin.clear_config()
  ours = config.load_model_gin(tmp_path)
  assert ours.optimizer_def is None and ours.FEATURE_CONVERTER_CLS is None
  assert jax.tree.all(
    jax.tree.map(lambda a, b: a.shape == b.shape, theirs, variables(ours))
  )
  assert ours.input_shapes(3) == model.input_shapes(3)
  # A joint model keeps what drawing needs in its part that draws.
  ours, model = (getattr(x, "text_to_image", x) for x in (ours, model))
  kept = {"guidance_scale", "num_sampling_steps", "image_size", "beam_size"}
  kept = {x for x in kept if hasattr(model, x)}
  assert kept and all(getattr(ours, x) == getattr(model, x) for x in kept)


def test_a_latent_model_gin_builds_the_same(tmp_path):
  files = ["experiments/tiny.gin", "models/latent.gin", "sizes/vae_tiny.gin"]
  bindings = [
    *ONE_LEVEL,
    "UNET_PATCH_SIZE=1",
    "autoencoder.KLCodec.tile_size=8",
  ]
  config.parse(
    files, [*outputs("experiments/tiny.gin"), *bindings], run_mode="train"
  )
  model = build()
  theirs = variables(model)
  assert set(theirs["frozen"]) == {"codec"}
  config.write_configs(tmp_path)
  gin.clear_config()
  ours = config.load_model_gin(tmp_path)
  assert ours.codec == model.codec and ours.codec.tile_size == 8
  assert ours.denoise_decorator is None
  assert jax.tree.structure(variables(ours)) == jax.tree.structure(theirs)


@pytest.mark.parametrize(
  ("name", "schedule", "timesteps"),
  [
    ("sd21", "scaled_linear_v", [751, 501, 251, 1]),
    ("sdxl", "scaled_linear_noise", [751, 501, 251, 1]),
    ("if", "squared_cosine_noise", [750, 500, 250, 0]),
  ],
)
def test_published_networks_draw_by_their_own_steps(
  name, schedule, timesteps, tmp_path
):
  files = [
    "experiments/tiny.gin",
    f"schedules/{schedule}.gin",
    f"models/sampling_{name}.gin",
  ]
  config.parse(files, outputs("experiments/tiny.gin"), run_mode="train")
  config.write_configs(tmp_path)
  gin.clear_config()
  model = config.load_model_gin(tmp_path)
  levels = np.asarray(model.steps(model.schedule, 4))
  starts = levels[:, 0] if levels.ndim == 2 else levels[:-1]
  found = 1000 * np.asarray(model.schedule.timesteps(starts)) - 1
  np.testing.assert_allclose(found, timesteps, atol=0.02)
  last = levels.ravel()[-1]
  assert np.isfinite(last) if name == "sd21" else last == np.inf


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_record_of_a_run_runs_again(name, tmp_path, monkeypatch):
  program = config.parse([name], outputs(name), run_mode="train")
  config.write_configs(tmp_path)
  monkeypatch.chdir(tmp_path)
  again = config.parse(["config.gin"], run_mode="eval")
  assert {k: b.value for k, b in again.bindings.items()} == {
    k: b.value for k, b in program.bindings.items()
  }


@pytest.mark.parametrize("name", OTHERS)
def test_every_part_fits_a_tiny_experiment(name):
  """One that reads, if the part is a reader's."""
  if name.startswith("sizes/unet_"):
    pytest.skip("with a model file of its own in unet_families_test")
  if name.startswith("sizes/t5_"):
    pytest.skip("nothing tiny has a semantic encoder; see t5_names_test")
  reads = name.endswith("_reading.gin") or name.startswith("sizes/reader")
  files = [f"experiments/tiny{'_ocr' if reads else ''}.gin", name]
  bindings = ["MODEL_DIR='/tmp/x'"]
  if name.startswith("sizes/vae"):
    # An eighth of 16 x 40 pixels is left for a UNet.
    files.insert(1, "models/latent.gin")
    bindings += [*ONE_LEVEL, "UNET_PATCH_SIZE=1"]
  config.parse(files, bindings, run_mode="train")
  model = build()
  assert model.optimizer_def.tx.init
  if not reads:
    assert np.all(np.isfinite(model.schedule.log_snr(np.float32([0.1, 0.9]))))
  learning_rate = gin.get_bindings("LEARNING_RATE_FN/gin.macro")["value"]
  assert np.asarray(learning_rate(np.int32(1))) > 0
  if name.startswith("sizes/"):
    assert jax.tree.leaves(variables(model))


def test_a_deep_encoder_is_scanned_and_recomputed_by_two_bindings():
  config.parse(
    ["experiments/tiny.gin", "sizes/byt5_xxl.gin"],
    [
      *outputs("experiments/tiny.gin"),
      "byt5.Byt5Config.scan_layers=True",
      "byt5.Byt5Config.remat=True",
    ],
    run_mode="train",
  )
  encoder = variables(build())["params"]["text_encoder"]["encoder"]
  assert encoder["layers"]["mlp"]["wo"]["kernel"].shape == (12352, 36, 4672)


@pytest.mark.parametrize(
  ("name", "axis"),
  [("data_parallel", None), ("fsdp", "data"), ("model_parallel", "model")],
)
def test_rules_know_every_axis_and_split_nearly_every_matrix(tiny, name, axis):
  """By the rules alone, on a mesh that the machine need not have."""
  rules = alone(f"partitioning/{name}.gin").macro("LOGICAL_AXIS_RULES")
  axes = partitioning_lib.logical_axes(tiny["params_axes"])
  layout = partitioning_lib.Partitioning(logical_axis_rules=rules)
  layout.param_shardings(tiny["params"], axes)
  names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
  split = [
    axis in [dict(rules)[x] for x in parameter]
    for parameter in names
    if len(parameter) > 1
  ]
  assert np.mean(split) > 0.8


def test_the_command_line_of_the_readme(tmp_path, monkeypatch):
  """From any folder, with names as short as they are unambiguous."""
  monkeypatch.chdir(tmp_path)
  bindings = [
    *outputs("experiments/tiny.gin"),
    "trainer.train.total_steps=5",
    "TRAIN_STEPS=7",
    "adamw.weight_decay=0",
    "TextToImageModel.guidance_scale=2.0",
    "validation/open_data.split='test'",
    "LOSS_WEIGHT=@diffusion.p2_weight()",
    "p2_weight.k=2.0",
  ]
  config.parse(["experiments/tiny.gin"], bindings, run_mode="train")
  assert gin.query_parameter("trainer.train.total_steps") == 5
  assert gin.query_parameter("optimizers.adamw.weight_decay") == 0
  assert build().guidance_scale == 2.0


def test_a_folder_of_ones_own_comes_before_ours(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  os.makedirs("mine/sizes")
  own = text("sizes/tiny.gin").replace("(48, 64)", "(32, 32)")
  (tmp_path / "mine/sizes/tiny.gin").write_text(own)
  config.parse(
    ["experiments/tiny.gin"],
    outputs("experiments/tiny.gin"),
    ["mine"],
    run_mode="train",
  )
  assert gin.query_parameter("%UNET_CHANNELS") == (32, 32)


def test_gin_root_of_a_wheel_is_inside_the_package(tmp_path, monkeypatch):
  package = tmp_path / "byt5_diffusion"
  (package / "gin" / "runs").mkdir(parents=True)
  monkeypatch.setattr(
    config.byt5_diffusion, "__file__", str(package / "__init__.py")
  )
  assert config.gin_root() == package / "gin"


@pytest.mark.parametrize(
  ("binding", "says"),
  [
    ("TRIAN_STEPS=5", ["TRIAN_STEPS", "Did you mean TRAIN_STEPS?"]),
    ("trainer.train.total_step=5", ["total_step", "total_steps"]),
    ("trainer.trian.total_steps=5", ["trian", "Did you mean train?"]),
    ("optimizers.lion.b1=0.5", ["optimizers.lion.b1", "nothing in"]),
    ("TextToImageModel.freeze_text_encoder='False'", ["bool", "'False'"]),
    ("TextToImageModel.freeze_text_encoder=1", ["bool", "1 (int)"]),
    ("BATCH_SIZE='32'", ["batch_size", "int", "'32'"]),
    ("BATCH_SIZE=32.0", ["batch_size", "int", "32.0"]),
    ("UNET_CHANNELS=64", ["channels", "tuple", "64"]),
    ("SAMPLE_TEXTS='hello'", ["sample_texts", "Sequence", "'hello'"]),
    ("LEARNING_RATE_FN=1e-3", ["learning_rate_fn", "Callable"]),
    ("MODEL=@unet.UNet", ["unet.UNet()"]),
    ("unet.UNet.config=3", ["unet.UNet.config", "UNetConfig", "3"]),
    ("SCHEDULE=@samplers.ddim()", ["schedule", "Schedule", "Sampler"]),
    ("IMAGE_SIZE=[16, 48]", ["image_size", "tuple"]),
    ("TRAIN_STEPS=%gin.REQUIRED", ["TRAIN_STEPS is not set"]),
    ("SCHEDULE=%SHEDULE", ["%SHEDULE", "SCHEDULE"]),
  ],
)
def test_a_user_s_mistake_is_told_before_anything_compiles(binding, says):
  with pytest.raises(config.ConfigError) as error:
    config.parse(
      ["experiments/tiny.gin"],
      [*outputs("experiments/tiny.gin"), binding],
      run_mode="train",
    )
  for part in says:
    assert part in str(error.value), error.value
