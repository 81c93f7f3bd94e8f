"""What `validate` says of a recipe: counted right, told in one line, cheap."""

import json
import re

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.linen import partitioning as nn_partitioning

from byt5_diffusion import (
  checkpoints,
  cli,
  config,
  partitioning,
  planning,
  recipes,
  trial,
  validation,
  validation_report,
)

RECIPE = """
from __gin__ import dynamic_registration
import tiny
from byt5_diffusion import optimizers
from byt5_diffusion import partitioning
from byt5_diffusion import trainer

BATCH_SIZE = 4
MODEL_DIR = %gin.REQUIRED
MODEL = @tiny.make_model()
tiny.make_model.batch_size = %BATCH_SIZE
trainer.train:
  model = %MODEL
  train_data = @tiny.Batches
  learning_rate_fn = @optimizers.constant()
  partitioning = @partitioning.Partitioning()
  model_dir = %MODEL_DIR
  total_steps = 10
  batch_size = %BATCH_SIZE
  ema_decay = 0.9
optimizers.constant.value = 0.001
partitioning.Partitioning.num_partitions = 1
"""


@pytest.fixture(autouse=True)
def clean_gin(monkeypatch):
  monkeypatch.setattr(config, "_parsed", None)
  yield
  gin.clear_config()


@pytest.fixture
def recipe(tmp_path):
  path = tmp_path / "recipe.gin"
  path.write_text(RECIPE)
  return str(path)


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
  """Of a recipe with data, everything run."""
  path = tmp_path_factory.mktemp("recipe") / "recipe.gin"
  path.write_text(RECIPE)
  found = validation.validate(str(path), num_examples=40)
  gin.clear_config()
  return found


@pytest.fixture
def no_trial(monkeypatch):
  ran = {"train_loss": 1.0, "eval_loss": 1.0, "seconds": 0.0}
  ran |= {"data": "synthetic", "batch_size": 2}
  monkeypatch.setattr(trial, "run", lambda *unused: ran)


@pytest.fixture
def no_plan(monkeypatch):
  monkeypatch.setattr(validation._Run, "_plan", lambda *unused: None)
  monkeypatch.setattr(validation._Run, "_try", lambda self: None)


def variables():
  model = tiny.make_model(4)
  return jax.eval_shape(
    lambda rng: model.get_initial_variables(rng, model.input_shapes(4)),
    jax.random.key(0),
  )


# --- What is counted ---------------------------------------------------------


def test_a_sound_recipe_has_no_problems(facts):
  assert facts["problems"] == []
  assert facts["programs"] == ["train"]
  json.dumps(facts)  # plain JSON
  ran = facts["trial"]
  assert ran["data"] == "real" and ran["draw"] == "finite"
  assert 0 < ran["train_loss"] < 10 and 0 < ran["eval_loss"] < 10


def test_parameters_are_those_of_the_tree(facts):
  params = variables()["params"]
  counts = facts["parameters"]["params"]
  leaves = jax.tree.leaves(params)
  assert counts["count"] == sum(int(np.prod(x.shape)) for x in leaves)
  for part, tree in params.items():
    expected = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
    assert counts["parts"][part] == expected
  assert sum(counts["modules"].values()) == counts["count"]
  assert counts["bytes"] == 4 * counts["count"]
  assert len(facts["arrays"]) == len(leaves)
  assert sum(x["bytes"] for x in facts["arrays"]) == counts["bytes"]


def test_memory_is_params_moments_average_and_gradients(facts):
  rows = {row["what"]: row["bytes"] for row in facts["memory"]}
  params = facts["parameters"]["params"]["bytes"]
  assert rows["parameters"] == rows["gradients"] == params
  assert rows["averaged parameters"] == params
  # Adam: two moments and a counter.
  assert 2 * params <= rows["optimizer state"] < 2 * params + 64
  assert rows["frozen networks"] == 0 and rows["activations"] > 0


def test_batches_are_told_as_both_sides_have_them(facts):
  rows = {row["key"]: row for row in facts["batch"]}
  assert set(rows) == {"images", "text_tokens", "example_id"}
  for row in rows.values():
    assert row["data"] == row["model"]
  assert rows["images"]["data"] == [4, 8, 16, 3]
  assert rows["text_tokens"]["dtype"] == "int32"


def test_the_data_are_counted(facts):
  data = facts["data"]
  assert data["examples"] == 40
  bars = data["caption_bytes_histogram"]
  assert sum(bar["count"] for bar in bars) == 40
  assert data["caption_bytes"]["max"] <= tiny.LENGTH - 1
  assert data["sizes"] == {"8x16": 40}


def test_operations_of_a_step_agree_with_xla(facts):
  step = facts["operations"]["train_step"]
  assert step["total"] == pytest.approx(step["xla"], rel=0.1)
  assert facts["operations"]["draw"]["total"] > 0


class OneProduct:
  """loss = sum (x w)^2: everything about it has a closed form."""

  FEATURE_CONVERTER_CLS = None
  loss_normalizing_factor = 8.0
  optimizer_def = tiny.optimizers.adamw()

  def input_shapes(self, batch_size=1):
    return {"x": (batch_size, 16)}

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    axes = {"w_axes": nn_partitioning.AxisMetadata(names=("embed", "mlp"))}
    w = jax.random.normal(rng, (16, 32))
    return {"params": {"w": w}, "params_axes": axes}

  def loss_fn(self, params, batch, dropout_rng, flax_mutables=None):
    return jnp.sum((batch["x"] @ params["w"]) ** 2) / 8, {}

  def eval_fn(self, params, batch, flax_mutables=None):
    return self.loss_fn(params, batch, None)


def plan_of(model, devices=1, rules=None):
  rules = rules or partitioning.STANDARD_LOGICAL_AXIS_RULES
  layout = partitioning.Partitioning(logical_axis_rules=rules)
  arguments = {
    "model": model,
    "batch_size": 8,
    "num_microbatches": 1,
    "ema_decay": None,
    "learning_rate_fn": lambda step: jnp.float32(0.1),
  }
  batch = {
    name: jax.ShapeDtypeStruct(shape, np.float32)
    for name, shape in model.input_shapes(8).items()
  }
  return planning.make(arguments, batch, layout.planned(devices))


def test_a_product_s_step_is_its_closed_form():
  found = planning.describe(plan_of(OneProduct()))
  # Forward x w, backward x^T g: 2 M N K each, of 8 examples.
  products = found["operations"]["train_step"]["products"]
  assert products == 2 * (2 * 16 * 32)
  assert found["parameters"]["params"]["count"] == 16 * 32
  rows = {row["what"]: row["bytes"] for row in found["memory"]}
  assert rows["parameters"] == 4 * 16 * 32
  assert rows["averaged parameters"] == 0


def test_the_compiler_s_memory_is_told_as_its_own():
  plan = plan_of(OneProduct())
  row = planning.describe(plan, compile_step=True)["memory"][-1]
  assert row["what"] == "activations" and row["how"] == "XLA on cpu"
  estimate = planning.describe(plan)["memory"][-1]
  assert estimate["how"] == "estimate"
  facts = {"memory": [row], "problems": []}
  assert "by XLA on cpu" in validation_report.to_text(facts)


def test_a_plan_for_many_devices_shares_out_what_its_rules_say():
  rules = [("embed", "data"), ("mlp", None)]
  found = planning.describe(plan_of(OneProduct(), 8, rules))
  assert found["mesh"]["axes"] == {"data": 8, "model": 1}
  [array] = found["arrays"]
  assert array["axes"] == ["embed", "mlp"] and array["layout"] == ["data", None]
  assert array["bytes_per_device"] * 8 == array["bytes"]
  rows = {row["what"]: row for row in found["memory"]}
  moments = rows["optimizer state"]
  assert moments["bytes_per_device"] < moments["bytes"] / 8 + 64


def test_a_model_of_many_billions_is_planned_without_memory():
  class Huge(OneProduct):
    def input_shapes(self, batch_size=1):
      return {"x": (batch_size, 2**18)}

    def get_initial_variables(self, rng, input_shapes, input_types=None):
      found = super().get_initial_variables(rng, input_shapes)
      w = jnp.zeros((2**18, 2**18))  # 256 GiB
      return found | {"params": {"w": w}}

  found = planning.describe(plan_of(Huge(), 64))
  assert found["parameters"]["params"]["count"] == 2**36


# --- What is wrong -----------------------------------------------------------


def test_without_data_nothing_is_read(recipe, no_trial, monkeypatch):
  monkeypatch.setattr(tiny.Batches, "__next__", None)
  found = validation.validate(recipe, read_data=False)
  assert found["problems"] == [] and "data" not in found
  assert [row["data"] for row in found["batch"]] == [None] * 3


def test_missing_data_are_a_problem_with_a_remedy(
  recipe, no_trial, monkeypatch
):
  def missing(self, *unused, **keywords):
    raise ValueError("pictures is not a folder.")

  monkeypatch.setattr(tiny.Batches, "__init__", missing)
  found = validation.validate(recipe)
  [problem] = found["problems"]
  assert "pictures is not a folder" in problem and "--no_data" in problem
  # All that can be known without them is there.
  assert found["memory"] and found["operations"] and found["trial"]


@pytest.mark.parametrize("read", [True, False])
def test_data_and_model_of_different_sizes_are_one_line(recipe, no_trial, read):
  if read:
    bindings = [f"tiny.make_model.max_text_length={tiny.LENGTH + 1}"]
    found = validation.validate(recipe, bindings)
  else:
    recipe = "experiments/tiny.gin"
    bindings = ["TextToImageModel.max_text_length=20"]
    found = validation.validate(recipe, bindings, read_data=False)
  [problem] = found["problems"]
  assert "TASK_FEATURE_LENGTHS['text_tokens']" in problem
  assert "max_text_length" in problem or "'text_tokens' is (64, 20)" in problem
  assert "memory" not in found


def test_devices_that_are_not_there_are_planned(recipe, no_trial):
  four = ["Partitioning.num_partitions=4"]
  found = validation.validate(recipe, four, read_data=False)
  assert found["mesh"]["axes"] == {"data": 1, "model": 4}
  assert found["problems"] == []
  found = validation.validate(recipe, four, read_data=False, num_devices=6)
  [problem] = found["problems"]
  assert "num_partitions=4 does not divide 6 devices" in problem


def test_a_batch_that_the_devices_do_not_divide_is_named(recipe, no_plan):
  found = validation.validate(recipe, [], read_data=False, num_devices=3)
  assert "batch_size=4 is not a multiple of 3" in found["problems"][0]


def test_weights_that_are_gone_are_named(recipe, no_plan):
  bindings = ["trainer.train.frozen_checkpoint='/no/such/tree'"]
  found = validation.validate(recipe, bindings, read_data=False)
  [problem] = found["problems"]
  assert "/no/such/tree" in problem and "frozen_checkpoint" in problem


def test_a_run_to_start_from_that_is_gone_is_named(no_plan):
  found = validation.validate(
    "experiments/tiny_finetune.gin",
    ["INITIAL_CHECKPOINT_PATH='/no/such/run'"],
    read_data=False,
  )
  [problem] = found["problems"]
  assert "/no/such/run" in problem and "initial_checkpoint" in problem


def test_rules_that_do_not_fit_are_named_before_anything_is_traced(
  tmp_path, monkeypatch
):
  def traced(*unused):
    raise AssertionError("traced")

  monkeypatch.setattr(validation.planning, "describe", traced)
  monkeypatch.setattr(validation._Run, "_try", lambda self: None)
  checkpoints.save_tree(tmp_path / "tree", {"unet": {"kernel": np.ones(3)}})
  found = validation.validate(
    "experiments/tiny_finetune.gin",
    [f"INITIAL_CHECKPOINT_PATH={str(tmp_path / 'tree')!r}"],
    read_data=False,
  )
  [problem] = found["problems"]
  assert "text_encoder" in problem and "lack" in problem


def test_a_mistake_in_the_recipe_is_told_once():
  found = validation.validate("experiments/tiny.gin", ["TRIAN_STEPS=5"])
  [problem] = found["problems"]
  assert "Did you mean TRAIN_STEPS?" in problem


def test_a_loss_that_is_not_finite_is_a_problem(recipe, monkeypatch):
  monkeypatch.setattr(planning, "describe", lambda *unused: {"memory": []})
  ran = {"train_loss": None, "eval_loss": 1.0, "seconds": 0.0}
  ran |= {"data": "real", "batch_size": 2}
  monkeypatch.setattr(trial, "run", lambda *unused: ran)
  found = validation.validate(recipe, num_examples=8)
  assert found["problems"] == ["trial at tiny size: train_loss is not finite."]
  assert "not finite" in validation_report.to_text(found)


# --- The trial ---------------------------------------------------------------


def test_a_trial_keeps_pictures_and_drops_the_users_sizes():
  bindings = ["UNET_CHANNELS=(64, 128, 192)", "TRAIN_STEPS=7", "BATCH_SIZE=128"]
  program = recipes.parse("experiments/small_64.gin", bindings, "train")
  small, arguments = trial._sized_down(
    "experiments/small_64.gin", bindings, program
  )
  assert small["UNET_CHANNELS"] == (48, 64) and small["BATCH_SIZE"] == 2
  assert arguments["total_steps"] == 7 and arguments["batch_size"] == 2
  assert arguments["model"].image_size == (64, 256)


def test_pictures_too_large_for_a_trial_are_left_out(recipe, monkeypatch):
  monkeypatch.setattr(trial, "MAX_OPERATIONS", 10)
  program = recipes.parse(recipe, [], "train")
  found = trial.run(recipe, [], program, [])
  assert "operations" in found["skipped"] and "train_loss" not in found
  said = validation_report.to_text({"trial": found, "problems": []})
  assert "left out" in said


def test_synthetic_batches_have_the_shapes_that_are_wanted():
  batch = trial.synthetic(tiny.make_model(), 3)
  shapes = {name: x.shape for name, x in batch.items()}
  assert shapes == tiny.make_model().input_shapes(3)
  assert batch["text_tokens"].dtype == np.int32 and batch["text_tokens"].any()


# --- The page and the command ------------------------------------------------


def test_text_and_page_say_the_same(facts):
  text = validation_report.to_text(facts)
  page = validation_report.to_html(facts)
  total = f"{facts['parameters']['params']['count']:,}"
  for said in (total, "unet", "text_encoder", "text_tokens", "Activations"):
    assert said in text and said in page
  assert "<script" not in page and "http:" not in page
  assert "Content-Security-Policy" in page
  for line in text.splitlines():
    assert len(line) < 250 and line == line.rstrip()


def test_names_in_a_page_are_escaped(facts):
  hostile = dict(facts, recipe="<script>alert(1)</script>", problems=["<b>"])
  page = validation_report.to_html(hostile)
  assert "<script" not in page and "<b>" not in page.replace("<b>ok", "")
  assert "&lt;b&gt;" in page


@pytest.mark.parametrize(
  ("count", "said"),
  [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**40, "1.0 TiB")],
)
def test_bytes_in_words(count, said):
  assert validation_report.size(count) == said


def test_numbers_in_words():
  assert validation_report.number(999) == "999"
  assert validation_report.number(1.5e12) == "1.50 T"
  assert validation_report.number(2e15) == "2.00 P"


@pytest.fixture
def canned(monkeypatch, facts):
  """The command, without the work."""

  def validate(recipe, bindings, **keywords):
    calls.append((recipe, list(bindings), keywords))
    return facts | {"problems": problems}

  calls, problems = [], []
  monkeypatch.setattr(validation, "validate", validate)
  return calls, problems


def test_the_command_prints_tables_and_ok(canned, capsys, tmp_path):
  calls, _ = canned
  out = tmp_path / "new" / "report.html"
  arguments = ["validate", "x.gin", "--devices=8", "--no_data"]
  assert not cli.main([*arguments, f"--out={out}", "--gin.A=1"])
  recipe, bindings, keywords = calls[0]
  assert (recipe, bindings) == ("x.gin", ["A=1"])
  assert keywords["num_devices"] == 8 and keywords["read_data"] is False
  assert capsys.readouterr().out.endswith("\nok\n")
  assert out.read_text().startswith("<!doctype html>")
  assert cli.main([*arguments, f"--out={out}"]) == 2
  assert "--overwrite" in capsys.readouterr().err
  assert not cli.main([*arguments, f"--out={out}", "--overwrite"])


def test_json_is_one_object(canned, capsys, tmp_path):
  assert not cli.main(
    ["validate", "x.gin", "--json", f"--out={tmp_path}/a.json"]
  )
  printed = json.loads(capsys.readouterr().out)
  assert printed["problems"] == [] and printed["memory"]
  assert json.loads((tmp_path / "a.json").read_text()) == printed


def test_problems_end_with_code_2(canned, capsys):
  canned[1].append("batch: too small")
  assert cli.main(["validate", "x.gin"]) == 2
  assert capsys.readouterr().err == "Error: batch: too small\n"
  canned[1].append("another")
  assert cli.main(["validate", "x.gin"]) == 2
  assert "2 problems:\n  batch: too small\n  another" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    (["--out=x.txt"], "--out x.txt: must end in .html or .json"),
    (["--out=/proc/nope/x.html"], "nothing can be written in /proc/nope"),
    (["--devices=0"], "--devices 0: must be positive"),
    (["--examples=-3"], "--examples -3: must be positive"),
  ],
)
def test_wrong_uses_end_in_one_line(canned, capsys, flags, says):
  assert cli.main(["validate", "x.gin", *flags]) == 2
  error = capsys.readouterr().err
  assert says in error and error.count("\n") == 1
  assert not canned[0]


def test_an_unknown_recipe_is_one_line(capsys):
  assert cli.main(["validate", "nothing.gin"]) == 2
  captured = capsys.readouterr()
  assert "no gin file nothing.gin" in captured.err
  assert captured.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", sorted(p.name for p in (config.gin_root() / "experiments").iterdir())
)
def test_every_experiment_is_valid(name):
  """With what data this machine has: a user's own files are not here."""
  recipe = f"experiments/{name}"
  text = (config.gin_root() / recipe).read_text("utf-8")
  read = "image_caption_folder" not in text and "_semantic.gin" not in text
  found = validation.validate(recipe, num_examples=16, read_data=read)
  assert found["problems"] == []
  assert not re.search("nan", json.dumps(found))
