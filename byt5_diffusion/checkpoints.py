"""Checkpoints of a run: MODEL_DIR/checkpoint_<step>/ (T5X's name for it).

Each holds the train state, every host's position in the data (host_places.py)
and the caller's JSON (stored_trees.py says how). A step is written beside its
final name, in the background, and renamed when complete: what has the final
name can be restored, whenever the writer was killed.
"""

import concurrent.futures
import contextlib
import itertools
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from byt5_diffusion import host_places, stored_trees

PyTree = Any

STEP_PREFIX = "checkpoint"
_DELETED = ".deleted"
# Nothing else is deleted, whatever a user calls a copy.
_OWN_DELETED = re.compile(
  rf"{STEP_PREFIX}_\d+(\.orbax-checkpoint-tmp[^.]*)?\.deleted([.-]\d+)?"
)
_TEMPORARY = ".orbax-checkpoint-tmp"
CheckpointError = stored_trees.CheckpointError
check_tree = stored_trees.check_tree
load_tree = stored_trees.load_tree
save_tree = stored_trees.save_tree
tree_sha256 = stored_trees.tree_sha256


def _step_path(model_dir: epath.Path, step: int) -> epath.Path:
  return model_dir / f"{STEP_PREFIX}_{step}"


def _scan(model_dir: epath.Path) -> dict[int, bool]:
  """{step: committed} of every checkpoint directory."""
  if not model_dir.exists():
    return {}
  if not model_dir.is_dir():
    raise CheckpointError(f"{model_dir} is a file, not a directory.")
  steps = {}
  for path in model_dir.iterdir():
    found = re.fullmatch(rf"{STEP_PREFIX}_(\d+)", path.name)
    if found and path.is_dir():
      # A running job may just be deleting this old step.
      with contextlib.suppress(FileNotFoundError):
        steps[int(found[1])] = stored_trees.is_committed(path)
  return dict(sorted(steps.items()))


def committed_steps(model_dir: str | os.PathLike[str]) -> list[int]:
  """Steps that can be restored, ascending; half-written ones are left out."""
  return [
    step
    for step, done in _scan(stored_trees.absolute(model_dir)).items()
    if done
  ]


def _step_dir(model_dir: epath.Path, step: int | None) -> epath.Path:
  steps = committed_steps(model_dir)
  if not steps:
    raise CheckpointError(f"{model_dir} holds no complete checkpoint.")
  if step is None:
    step = steps[-1]
  elif step not in steps:
    raise CheckpointError(
      f"{model_dir} holds no complete checkpoint of step {step}; it has"
      f" {steps}."
    )
  return _step_path(model_dir, step)


def read_data_states(path: str | os.PathLike[str]) -> list[bytes]:
  """The data pipeline's position on each host that wrote the checkpoint."""
  return host_places.read(stored_trees.absolute(path) / "data")


class Restored(NamedTuple):
  """What inference needs of a checkpoint."""

  params: dict[str, Any]
  extra: dict[str, Any]
  step: int


def restore_params(
  model_dir: str | os.PathLike[str], step: int | None = None, ema: bool = True
) -> Restored:
  """Parameters as nested dicts of numpy arrays, for inference.

  Args:
    model_dir: directory of the run.
    step: None = the latest complete one.
    ema: prefer the averaged parameters, where the run keeps them.
  """
  path = _step_dir(stored_trees.absolute(model_dir), step)
  extra = stored_trees.check(path)
  names = _params_in(path, ema)
  wanted = {name: np.empty([0]) for name in names.values()}
  arrays = stored_trees.read(path / "state", wanted)
  return Restored(
    params=stored_trees.nest({k: arrays[v] for k, v in names.items()}),
    extra=extra,
    step=int(path.name.removeprefix(f"{STEP_PREFIX}_")),
  )


def _params_in(path: epath.Path, ema: bool) -> dict[str, str]:
  """{parameter: its name in the checkpoint's state}."""
  stored = stored_trees.stored(path / "state")
  for prefix in ("ema_params/", "params/") if ema else ("params/",):
    found = {k.removeprefix(prefix): k for k in stored if k.startswith(prefix)}
    if found:
      return found
  raise CheckpointError(f"{path} holds no parameters.")


def open_source(
  path: str | os.PathLike[str], step: int | None = None, use_ema: bool = True
) -> stored_trees.Source:
  """The parameters of a run, of one of its steps, or of a tree; unread.

  Args:
    path: MODEL_DIR, MODEL_DIR/checkpoint_<step>, or save_tree's directory.
    step: of a MODEL_DIR; None = the latest complete one.
    use_ema: prefer the averaged parameters, where a run keeps them.
  """
  place = stored_trees.absolute(path)
  if not (place / "extra" / "metadata").exists():
    place = _step_dir(place, step)
  elif not stored_trees.is_committed(place):
    raise CheckpointError(f"{place} is incomplete.")
  stored_trees.check(place)
  item = place / "state"
  stored = stored_trees.stored(item)
  if (place / "data").exists():
    names = _params_in(place, use_ema)
    averaged = any(name.startswith("ema_params/") for name in names.values())
    what = f"{'averaged' if averaged else 'trained'} weights of {place}"
  else:
    names, what = {name: name for name in stored}, f"tree {place}"

  def read(wanted: Collection[str]) -> dict[str, np.ndarray]:
    arrays = stored_trees.read(item, {names[k]: np.empty([0]) for k in wanted})
    return {k: arrays[names[k]] for k in wanted}

  shapes = {k: stored_trees.shape_of(stored[v]) for k, v in names.items()}
  return stored_trees.Source(what, shapes, read)


# --- Writing a run. ---


def _unused(path: str) -> epath.Path:
  numbered = (f"{path}-{i}" for i in itertools.count(2))
  names = map(epath.Path, itertools.chain([path], numbered))
  return next(name for name in names if not name.exists())


def _delete(path: epath.Path) -> None:
  try:
    path.rmtree()
  except OSError as error:
    logging.warning("%s could not be deleted: %s", path, error)


def _open_manager(model_dir: epath.Path) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    model_dir,
    options=ocp.CheckpointManagerOptions(
      step_prefix=STEP_PREFIX,
      save_root_metadata=False,
    ),
    item_names=tuple(sorted(stored_trees.ITEMS)),
    item_handlers={
      "state": ocp.PyTreeCheckpointHandler(),
      "data": ocp.PyTreeCheckpointHandler(),
      "extra": ocp.JsonCheckpointHandler(),
    },
  )


class Checkpointer:
  """Writes and restores the checkpoints of one run.

  Opening it removes what killed saves have left behind, so one run at a time
  may have it open; readers use the functions of this module.
  """

  def __init__(
    self,
    model_dir: str | os.PathLike[str],
    *,
    period: int = 1000,
    keep: int | None = 3,
    merge: Callable[[Sequence[bytes]], bytes] | None = None,
  ):
    """Opens model_dir, which may be relative and need not exist.

    Args:
      model_dir: directory of the run.
      period: should_save is true at multiples of this many steps.
      keep: how many of the latest checkpoints stay; None = all.
      merge: puts the places of all hosts together, for a run that goes on with
        another number of them (data.state.merge); None = that is refused.

    Raises:
      CheckpointError: model_dir is a file or another program's.
    """
    if period < 1 or (keep is not None and keep < 1):
      raise ValueError(f"{period=} and {keep=} must be positive.")
    self.model_dir = stored_trees.absolute(model_dir)
    self.period = period
    self.keep = keep
    self._merge = merge
    self._saving: int | None = None
    self._deleter = concurrent.futures.ThreadPoolExecutor(1)
    try:
      if jax.process_index() == 0:
        self._tidy()
      if jax.process_count() > 1:
        # Else another host might still see what is being tidied away.
        multihost_utils.sync_global_devices("checkpoints tidied")
      self._steps = committed_steps(self.model_dir)
      self._manager = _open_manager(self.model_dir)
    except OSError as error:
      raise CheckpointError(
        f"{self.model_dir} can't be used for checkpoints: {error}"
      ) from error

  def _tidy(self) -> None:
    """Takes what earlier runs left unfinished out of the way."""
    for step, done in _scan(self.model_dir).items():
      if not done:
        path = _step_path(self.model_dir, step)
        # Not deleted: it may be a copy that somebody has still to complete.
        aside = _unused(f"{path}.incomplete")
        logging.warning("%s is incomplete; it is now %s.", path, aside)
        path.rename(aside)
    if not self.model_dir.exists():
      return
    for path in self.model_dir.glob(f"{STEP_PREFIX}_*{_TEMPORARY}*"):
      if _DELETED not in path.name:
        # Renamed first: the name may be wanted again before it is gone.
        path.rename(_unused(f"{path}{_DELETED}"))
    for path in self.model_dir.glob(f"{STEP_PREFIX}_*{_DELETED}*"):
      if _OWN_DELETED.fullmatch(path.name):
        self._deleter.submit(_delete, path)

  def _delete_old(self) -> None:
    """Deletes all but the latest `keep`, in the background."""
    if self.keep is None:
      return
    old = sorted(self._steps)[: -self.keep]
    self._steps = [step for step in self._steps if step not in old]
    if jax.process_index() != 0:
      return
    for path in [_step_path(self.model_dir, step) for step in old]:
      # Renamed first: half a directory must not look like a checkpoint.
      if path.exists():
        aside = path.rename(_unused(f"{path}{_DELETED}"))
        self._deleter.submit(_delete, aside)

  def should_save(self, step: int) -> bool:
    """Whether step is a multiple of the period."""
    return step % self.period == 0

  def latest_step(self) -> int | None:
    """The latest complete step, or None; not one still being written."""
    return max(self._steps, default=None)

  def save(
    self,
    step: int,
    state: PyTree,
    data_state: bytes = b"",
    extra: Mapping[str, Any] | None = None,
  ) -> bool:
    """Starts to write a checkpoint; returns when state may be donated.

    Waits for the save before it, if that still runs.

    Args:
      step: names the directory.
      state: tree of arrays.
      data_state: this host's position in the data.
      extra: JSON-serializable; the same on every host.

    Returns:
      False if that step had been saved already.

    Raises:
      CheckpointError: this or the save before it failed.
    """
    self.wait()
    if step in self._steps:
      return False
    flat = {
      k: stored_trees.storable(v)
      for k, v in stored_trees.flatten_names(state).items()
    }
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(stored_trees.nest(flat)),
          data=ocp.args.PyTreeSave(
            host_places.pack(host_places.gather(data_state))
          ),
          extra=ocp.args.JsonSave(stored_trees.wrap_extra(extra or {})),
        ),
        force=True,
      )
    except Exception as error:
      raise self._failure(step, error) from error
    self._saving = step
    return True

  def check(self) -> None:
    """Raises CheckpointError if a save has failed since; never waits."""
    if self._saving is not None and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Returns when nothing is being written; raises if that failed."""
    step, self._saving = self._saving, None
    if step is None:
      return
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._failure(step, error) from error
    self._steps.append(step)
    self._delete_old()

  def _failure(self, step: int, error: Exception) -> CheckpointError:
    return CheckpointError(
      f"Saving step {step} to {self.model_dir} failed: {error!r}. The latest"
      f" complete checkpoint is that of step {self.latest_step()}."
    )

  def read_extra(self, step: int) -> dict[str, Any]:
    """What `save` was given as extra."""
    return stored_trees.check(_step_dir(self.model_dir, step))

  def restore(
    self, step: int | None, state_shapes: PyTree
  ) -> tuple[PyTree, bytes, dict[str, Any]]:
    """(state, this host's data_state, extra) as saved.

    Args:
      step: None = the latest.
      state_shapes: tree of ShapeDtypeStructs or arrays like the state saved;
        their shardings say where it goes, whatever devices it came from.

    Raises:
      CheckpointError: no such step, another format, or leaves that are
        missing, unknown, or of another shape or dtype, each by name.
    """
    path = _step_dir(self.model_dir, step)
    extra = stored_trees.check(path)
    state = stored_trees.restore_tree(path / "state", state_shapes)
    return state, self._own_place(path), extra

  def _own_place(self, path: epath.Path) -> bytes:
    states = read_data_states(path)
    if len(states) == jax.process_count():
      return states[jax.process_index()]
    if self._merge is not None:
      return self._merge(states)
    raise CheckpointError(
      f"{path} was written by {len(states)} hosts and this run has"
      f" {jax.process_count()}: its data position can't be restored."
    )

  def close(self) -> None:
    """Waits, then releases threads; raises if the last save failed."""
    try:
      self.wait()
    finally:
      self._deleter.shutdown()
      self._manager.close()
