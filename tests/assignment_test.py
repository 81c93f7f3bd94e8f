"""Initial values by rules: the right bits arrive, and mistakes have names."""

import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import least
import numpy as np
import pytest
import tiny

from byt5_diffusion import (
  assignment,
  checkpoints,
  optimizers,
  stored_trees,
  train_state,
)
from byt5_diffusion.conversion import names

OURS = ["unet/in/kernel", "unet/out/kernel", "text/embedding"]
InitialCheckpoint = assignment.InitialCheckpoint


# --- Rules. ---


def test_the_first_match_wins_and_groups_are_filled_in():
  rules = [
    ("unet/out/.*", None),
    (r"unet/(\w+)/(\w+)", r"old/\2/\1"),
    (".*", "x"),
  ]
  assert assignment.match(OURS, rules) == {
    "unet/in/kernel": "old/kernel/in",
    "unet/out/kernel": None,
    "text/embedding": "x",
  }
  assert assignment.match(OURS, assignment.ALL) == {x: x for x in OURS}


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ([("unet/.*", None)], r"no rule matches text/embedding: end the rules"),
    ([(".*", None), ("unet/.*", "x")], r"'x'\) matches no .* rules before it"),
    ([("ocr/.*", "x"), ("(.*)", "\\1")], r"\('ocr/\.\*', 'x'\) matches no par"),
    ([("un(et", "x")], r"'un\(et', 'x'\) is no regular expression"),
    ([("un.*", r"\1"), (".*", None)], r"does not fit its regex"),
    ([("un.*", "\\g<name>"), (".*", None)], r"does not fit its regex"),
    ([("a", "b", "c")], r"is not \(regex, target\)"),
    # A part of a name is no match.
    ([("unet", None), (".*", None)], r"\('unet', None\) matches no parameter"),
  ],
)
def test_bad_rules_are_said_by_themselves(rules, message):
  with pytest.raises(assignment.AssignmentError, match=message):
    assignment.match(OURS, rules)


def source(**shapes):
  flat = {
    name.replace("__", "/"): jax.ShapeDtypeStruct(shape, dtype)
    for name, (shape, dtype) in shapes.items()
  }
  return stored_trees.Source("theirs", flat, lambda names: {})


def test_what_does_not_fit_is_listed_with_both_shapes():
  wanted = {
    "a/w": jax.ShapeDtypeStruct((2, 3), jnp.float32),
    "a/v": jax.ShapeDtypeStruct((4,), jnp.float32),
    "b": jax.ShapeDtypeStruct((1,), jnp.int32),
    "c": jax.ShapeDtypeStruct((5,), jnp.float32),
  }
  theirs = source(
    a__w=((3, 2), jnp.float32),
    b=((1,), jnp.float32),
    c=((5,), jnp.bfloat16),
    d=((), jnp.float32),
  )
  with pytest.raises(assignment.AssignmentError) as error:
    assignment.assign(wanted, theirs, assignment.ALL)
  text = str(error.value)
  assert text.startswith("theirs: it lacks a/v; it has a/w, b, c, d.")
  assert "a/w float32[2, 3] from a/w float32[3, 2]" in text
  assert "b int32[1] from b float32[1]" in text
  assert "c " not in text.partition("shapes differ")[2]  # bfloat16 is cast.
  rules = [("a/.*|b", None), ("(.*)", "\\1")]
  found = assignment.assign(wanted, theirs, rules)
  assert found.taken == {"c": "c"}
  assert found.fresh == ["a/w", "a/v", "b"]
  assert found.unused == ["a/w", "b", "d"]
  with pytest.raises(assignment.AssignmentError, match=r"\(for c\)"):
    assignment.assign(wanted, theirs, [("[ab].*", None), ("(x)?c", "\\1")])


def test_a_report_is_written_whole_or_leaves_nothing(tmp_path, monkeypatch):
  assignment.write_report(tmp_path, {"source": "größer"})
  path = tmp_path / assignment.REPORT_FILE
  assert json.loads(path.read_text("utf-8")) == {"source": "größer"}

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  with pytest.raises(OSError, match="No space left"):
    assignment.write_report(tmp_path, {"source": "other"})
  assert list(tmp_path.iterdir()) == [path]
  assert json.loads(path.read_text("utf-8")) == {"source": "größer"}


def test_long_lists_are_cut():
  wanted = {f"x{i}": jax.ShapeDtypeStruct((1,), np.float32) for i in range(30)}
  with pytest.raises(assignment.AssignmentError, match=r"x7 and 22 more;"):
    assignment.assign(wanted, source(), assignment.ALL)


# --- Sources. ---


def save_run(folder, step=5, ema=True):
  """A run whose average and trained weights differ; both trees."""
  params = {"a": {"w": jnp.arange(6.0).reshape(2, 3)}, "b": jnp.float32([7])}
  state = train_state.create(params, optimizers.lion().tx, ema)
  if ema:
    state = state.replace(
      ema_params=jax.tree.map(lambda x: x * 2 + 1, state.params)
    )
  writer = checkpoints.Checkpointer(folder)
  writer.save(step, state)
  writer.close()
  return state


@pytest.mark.parametrize("below", ["", "checkpoint_5"])
def test_a_run_gives_its_average_or_its_weights(tmp_path, below):
  state = save_run(tmp_path)
  for use_ema, expected, word in (
    (True, state.ema_params, "averaged"),
    (False, state.params, "trained"),
  ):
    found = assignment.open_source(tmp_path / below, use_ema=use_ema)
    assert word in found.what and "checkpoint_5" in found.what
    expected = stored_trees.flatten_names(expected)
    assert set(found.shapes) == set(expected)
    arrays = found.read(list(expected))
    for name, array in expected.items():
      assert found.shapes[name].shape == array.shape
      np.testing.assert_array_equal(arrays[name], array)


def test_a_tree_and_other_folders(tmp_path):
  checkpoints.save_tree(tmp_path / "tree", {"a": {"w": np.float32([1, 2])}})
  found = assignment.open_source(tmp_path / "tree")
  np.testing.assert_array_equal(found.read(["a/w"])["a/w"], [1, 2])
  save_run(tmp_path / "run", ema=False)
  assert "trained" in assignment.open_source(tmp_path / "run").what
  with pytest.raises(checkpoints.CheckpointError, match=r"step 6; it has .5."):
    assignment.open_source(tmp_path / "run", step=6)
  for name, message in (("nowhere", "no folder"), (".", "no complete")):
    with pytest.raises(checkpoints.CheckpointError, match=message):
      assignment.open_source(tmp_path / name)


# --- Fine-tuning. ---


def train(model_dir: pathlib.Path, **overrides: Any) -> Any:
  """One step that goes nowhere."""
  still = {"learning_rate_fn": optimizers.constant(0.0)}
  return least.train(model_dir, **(still | overrides))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Any:
  """A run that has left its initial values, and its last state."""
  folder = tmp_path_factory.mktemp("first")
  rate = optimizers.constant(0.1)
  return folder, train(folder, total_steps=2, learning_rate_fn=rate)


def flat(tree: Any) -> dict[str, np.ndarray]:
  return {k: np.asarray(v) for k, v in stored_trees.flatten_names(tree).items()}


def test_weights_came_from_the_checkpoint_and_the_rest_is_said(
  tmp_path: pathlib.Path, first: Any, capsys: pytest.CaptureFixture[str]
) -> None:
  folder, state = first
  fresh = flat(train(tmp_path / "plain", random_seed=3).params)
  rules = [("text_encoder/.*", None), ("(.*)", "\\1")]
  capsys.readouterr()
  tuned = train(
    tmp_path / "tuned",
    random_seed=3,
    initial_checkpoint=InitialCheckpoint(path=str(folder), rules=rules),
  )
  said = capsys.readouterr().err
  average, trained = flat(state.ema_params), flat(state.params)
  for tree in (tuned.params, tuned.ema_params):  # A step of length 0 later.
    for name, array in flat(tree).items():
      mine = name.startswith("text_encoder/")
      expected = fresh[name] if mine else average[name]
      assert array.tobytes() == expected.tobytes(), name
  # None of this would be noticed if all were the same.
  assert any((fresh[name] != average[name]).any() for name in fresh)
  assert any((trained[name] != average[name]).any() for name in fresh)

  report = json.loads((tmp_path / "tuned/initial_checkpoint.json").read_text())
  ours = [name for name in fresh if name.startswith("text_encoder/")]
  assert sorted(report["fresh"]) == sorted(report["unused"]) == sorted(ours)
  assert set(report["taken"]) == set(fresh) - set(ours)
  assert report["initial_checkpoint"]["path"] == str(folder)
  assert report["initial_checkpoint"]["rules"] == [list(x) for x in rules]
  assert f"{len(ours)} start fresh: text_encoder/" in said
  assert f"{len(ours)} of its own left unused" in said
  assert f"averaged weights of {folder}/checkpoint_2" in said


def test_a_run_that_goes_on_never_looks_back(
  tmp_path: pathlib.Path, first: Any
) -> None:
  moved = tmp_path / "moved"
  shutil.copytree(first[0], moved)
  initial = InitialCheckpoint(path=str(moved), use_ema=False)
  before = train(tmp_path / "run", initial_checkpoint=initial)
  assert tiny.leaves_equal(before.params, first[1].params)
  shutil.rmtree(moved)
  rate = optimizers.constant(0.1)
  after = train(
    tmp_path / "run",
    initial_checkpoint=initial,
    total_steps=2,
    learning_rate_fn=rate,
  )
  assert int(after.step) == 2
  # Without a checkpoint to go on from, it would be missed.
  with pytest.raises(checkpoints.CheckpointError, match="no folder"):
    train(tmp_path / "other", initial_checkpoint=initial)


def test_the_optimizer_starts_with_the_weights_taken(
  tmp_path: pathlib.Path, first: Any
) -> None:
  """One step from the checkpoint is what a first step there would be."""
  folder, state = first
  rate = optimizers.constant(0.05)
  model = least.Model()
  tuned = train(
    tmp_path,
    initial_checkpoint=InitialCheckpoint(path=str(folder)),
    learning_rate_fn=rate,
    model=model,
  )
  start = train_state.create(state.ema_params, model.optimizer_def.tx)
  assert tiny.leaves_equal(
    jax.tree.map(jnp.shape, tuned.opt_state),
    jax.tree.map(jnp.shape, start.opt_state),
  )
  before, after = flat(state.ema_params), flat(tuned.params)
  # Adam's first step is as long as the rate wherever there is a gradient; with
  # the moments of the earlier run it would not be.
  moved = np.concatenate([np.abs(after[k] - before[k]).ravel() for k in after])
  assert np.quantile(moved, 0.9) == pytest.approx(0.05, rel=0.05)


def test_mistakes_come_before_anything_is_compiled(
  tmp_path: pathlib.Path, first: Any
) -> None:
  initial = InitialCheckpoint(path=str(first[0]), rules=[("unet/.*", None)])
  with pytest.raises(assignment.AssignmentError, match="no rule matches"):
    train(tmp_path, initial_checkpoint=initial)
  model = least.Model(least.SHAPES | {"unet/in/kernel": (3, 6)})
  initial = InitialCheckpoint(path=str(first[0]))
  with pytest.raises(assignment.AssignmentError) as error:
    train(tmp_path, initial_checkpoint=initial, model=model)
  assert (
    "unet/in/kernel float32[3, 6] from unet/in/kernel float32[3, 5]"
    in str(error.value)
  )
  assert not (tmp_path / "initial_checkpoint.json").exists()


# --- T5X's encoder, trained on or frozen. ---


def encoder_of(shared_data: pathlib.Path) -> dict[str, np.ndarray]:
  path = shared_data / "fixtures" / "t5x" / "params_flat.npz"
  return {
    f"text_encoder/{name}": array
    for name, array in np.load(path).items()
    if not name.startswith("decoder/")
  }


def t5x_model(shared_data: pathlib.Path, frozen: str = "") -> least.Model:
  """The fixture's encoder, and something else."""
  encoder = {k: v.shape for k, v in encoder_of(shared_data).items()}
  return least.Model({"unet/kernel": (3, 2)} | encoder, frozen)


@pytest.mark.parametrize("kind", ["legacy", "orbax"])
def test_an_encoder_of_t5x_is_taken_under_a_new_name(
  tmp_path: pathlib.Path, shared_data: pathlib.Path, kind: str
) -> None:
  initial = InitialCheckpoint(
    path=str(shared_data / "fixtures" / "t5x" / kind),
    rules=[("text_encoder/(.*)", "\\1"), ("unet/.*", None)],
  )
  state = train(
    tmp_path, model=t5x_model(shared_data), initial_checkpoint=initial
  )
  found, expected = flat(state.params), encoder_of(shared_data)
  assert len(expected) > 15
  for name, array in expected.items():
    assert found[name].tobytes() == array.tobytes(), name
  report = json.loads((tmp_path / "initial_checkpoint.json").read_text())
  assert set(report["taken"]) == set(expected)
  assert all(name.startswith("decoder/") for name in report["unused"])


@pytest.mark.parametrize("kind", ["legacy", "orbax"])
def test_a_frozen_encoder_comes_from_t5x_once(
  tmp_path: pathlib.Path, shared_data: pathlib.Path, kind: str
) -> None:
  theirs = tmp_path / "theirs"
  shutil.copytree(shared_data / "fixtures" / "t5x" / kind, theirs)
  model = t5x_model(shared_data, frozen="text_encoder")
  initial = InitialCheckpoint(
    path=str(theirs), rules=[("text_encoder/(.*)", "\\1")]
  )
  run = tmp_path / "run"
  state = train(run, model=model, frozen_checkpoint=initial)
  assert set(state.params) == {"unet"}
  kept = flat(checkpoints.load_tree(run / "frozen"))
  expected = encoder_of(shared_data)
  assert set(kept) == set(expected)
  for name, array in expected.items():
    assert kept[name].tobytes() == array.tobytes()
  record = checkpoints.restore_params(run).extra["frozen"]
  assert record["path"] == "frozen"
  # It goes on without T5X's checkpoint, with or without the binding.
  for parent, _, files in os.walk(theirs):
    os.chmod(parent, 0o755)
    for file in files:
      os.chmod(os.path.join(parent, file), 0o644)
  shutil.rmtree(theirs)
  train(run, model=model, frozen_checkpoint=initial, total_steps=2)
  train(run, model=model, total_steps=3)
  other = InitialCheckpoint(path=str(theirs), rules=[("(.*)", "\\1")])
  with pytest.raises(ValueError, match="are not those of"):
    train(run, model=model, frozen_checkpoint=other, total_steps=4)
  # What is lost is not drawn at random instead.
  shutil.rmtree(run / "frozen")
  with pytest.raises(checkpoints.CheckpointError, match="no complete"):
    train(run, model=model, total_steps=4)
  assert not (run / "frozen").exists()


def test_what_a_frozen_network_cannot_be_made_of(
  tmp_path: pathlib.Path, shared_data: pathlib.Path
) -> None:
  model = t5x_model(shared_data, frozen="text_encoder")
  theirs = str(shared_data / "fixtures" / "t5x" / "legacy")
  with pytest.raises(ValueError, match=r"is a checkpoint of T5X: bind @assi"):
    train(tmp_path, model=model, frozen_checkpoint=theirs)
  rules = [(".*/encoder_norm/.*", None), ("text_encoder/(.*)", "\\1")]
  with pytest.raises(assignment.AssignmentError, match="none can start fresh"):
    train(
      tmp_path,
      model=model,
      frozen_checkpoint=InitialCheckpoint(path=theirs, rules=rules),
    )
  assert not (tmp_path / "frozen").exists()


def test_a_frozen_encoder_is_kept_in_half_the_memory(tmp_path):
  shapes = {
    "unet/kernel": (3, 2),
    "text_encoder/encoder_norm/scale": (3,),
    "text_encoder/mlp/kernel": (3, 4),
  }
  model = least.Model(shapes, frozen="text_encoder")
  abstract = model.get_initial_variables(
    jax.random.key(3), model.input_shapes(1)
  )
  path = str(tmp_path / "theirs")
  checkpoints.save_tree(path, abstract["frozen"])
  halves = [(".*/encoder_norm/.*", "float32"), ("text_enc.*", "bfloat16")]
  initial = InitialCheckpoint(path=path, dtypes=halves)
  run = tmp_path / "run"
  train(run, model=model, frozen_checkpoint=initial)
  for name, leaf in flat(checkpoints.load_tree(run / "frozen")).items():
    assert leaf.dtype == ("float32" if "encoder_norm" in name else "bfloat16")
  expected = abstract["frozen"]["text_encoder"]["mlp"]["kernel"]
  kept = checkpoints.load_tree(run / "frozen")["text_encoder"]["mlp"]["kernel"]
  np.testing.assert_array_equal(kept, expected.astype(jnp.bfloat16))
  # And as a tree of its own, given by its path.
  train(tmp_path / "again", model=model, frozen_checkpoint=str(run / "frozen"))
  # What learns does so in float32.
  trained = InitialCheckpoint(path=path, dtypes=[("unet/.*", "bfloat16")])
  with pytest.raises(assignment.AssignmentError, match="is float32; dtypes"):
    train(tmp_path / "x", model=model, initial_checkpoint=trained)
  for rules, says in [
    ([("text.*", "int8")], r"not \(regex, one of float32, bfloat16\)"),
    ([("tex(t", "bfloat16")], "no regular expression"),
    ([("ocr/.*", "bfloat16")], "matches no parameter"),
  ]:
    with pytest.raises(assignment.AssignmentError, match=says):
      InitialCheckpoint(path=path, dtypes=rules).take(abstract["frozen"])


def test_an_encoder_in_half_the_memory_says_nearly_the_same():
  model = tiny.make_model(freeze_text_encoder=True)
  frozen = model.get_initial_variables(
    jax.random.key(3), model.input_shapes(1)
  )["frozen"]
  tokens = jnp.asarray([[70, 80, 90, 1, 0, 0]])

  def encode(frozen):
    told = model.encode_text({}, tokens, {"frozen": frozen}).text_embeddings
    assert told.dtype == jnp.float32
    return np.asarray(told)[:, :4]

  wanted = encode(frozen)
  found = encode(jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen))
  assert 0 < np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


# --- Several checkpoints. ---


def test_networks_of_several_folders_become_one_model(tmp_path):
  first, second = tmp_path / "first", tmp_path / "second"
  checkpoints.save_tree(first, {"unet": {"kernel": np.arange(3.0)}})
  checkpoints.save_tree(second, {"text_encoder": {"bias": np.ones(2)}})
  paths = [str(first), str(second)]
  wanted = {
    "text_encoder": {"bias": np.zeros(2)},
    "unet": {"kernel": np.zeros(3)},
  }
  tree, report = InitialCheckpoint(path=paths).take(wanted)
  np.testing.assert_array_equal(tree["unet"]["kernel"], [0, 1, 2])
  np.testing.assert_array_equal(tree["text_encoder"]["bias"], [1, 1])
  assert report["initial_checkpoint"]["path"] == paths
  assert "first" in report["source"] and "second" in report["source"]
  with pytest.raises(names.ConversionError, match="holds unet/kernel twice"):
    InitialCheckpoint(path=[str(first), str(first)]).take(wanted)
  with pytest.raises(assignment.AssignmentError, match="list of paths is emp"):
    InitialCheckpoint(path=[]).take(wanted)


def test_layers_are_stacked_or_apart_as_the_model_wants_them(tmp_path):
  apart = {f"layers_{i}": {"kernel": np.full((2, 3), i)} for i in range(4)}
  together = {
    "layers": {"kernel": np.stack([np.full((2, 3), i) for i in range(4)], 1)}
  }
  for i, (stored, wanted) in enumerate([(apart, together), (together, apart)]):
    path = tmp_path / str(i)
    checkpoints.save_tree(path, {"text_encoder": {"encoder": stored}})
    tree, _ = InitialCheckpoint(path=str(path)).take(
      jax.tree.map(np.zeros_like, {"text_encoder": {"encoder": wanted}})
    )
    jax.tree.map(
      np.testing.assert_array_equal, tree["text_encoder"]["encoder"], wanted
    )
