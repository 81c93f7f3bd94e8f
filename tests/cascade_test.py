"""Stages that draw and enlarge, joined: sizes, keys, files and commands."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from byt5_diffusion import (
  cascade,
  cli,
  evaluation,
  feature_converters,
  inference,
  planning,
  trained,
)

TEXTS = ["a", "b", "a"]
SMALL, MIDDLE, LARGE = (4, 8), (8, 16), (16, 32)


def base_model(size: tuple[int, int] = SMALL) -> Any:
  return tiny.make_model(image_size=size, unet=tiny.make_dot_unet())


def upscaling_model(size: tuple[int, int] = MIDDLE, **others: Any) -> Any:
  return tiny.make_super_resolution_model(
    image_size=size, unet=tiny.make_dot_unet(6, noise_level=True), **others
  )


def with_weights(kind: type[trained.Trained], model: Any) -> Any:
  params = jax.jit(
    lambda rng: model.get_initial_variables(rng, model.input_shapes(2))
  )(jax.random.key(0))["params"]
  return kind(model=model, params=params, batch_size=2)


@pytest.fixture(scope="module")
def base() -> inference.Generator:
  return with_weights(inference.Generator, base_model())


@pytest.fixture(scope="module")
def upscaler() -> inference.Upscaler:
  return with_weights(inference.Upscaler, upscaling_model())


@pytest.fixture(scope="module")
def last() -> inference.Upscaler:
  return with_weights(inference.Upscaler, upscaling_model(LARGE))


@pytest.fixture(scope="module")
def stages(base: Any, upscaler: Any, last: Any) -> cascade.Cascade:
  return cascade.Cascade(base=base, upscalers=(upscaler, last))


# --- What it draws ------------------------------------------------------------


def test_each_stage_enlarges_what_the_one_before_made(
  stages: cascade.Cascade, base: Any, upscaler: Any, last: Any
) -> None:
  small, middle, large = stages.stages(TEXTS, seed=3)
  assert [x.shape[1:3] for x in (small, middle, large)] == stages.sizes
  assert np.array_equal(small, base.generate(TEXTS, seed=3))
  assert np.array_equal(middle, upscaler.upscale(small, TEXTS, seed=3))
  assert np.array_equal(large, last.upscale(middle, TEXTS, seed=3, stage=2))
  assert np.array_equal(large, stages.generate(TEXTS, seed=3))
  # A repeated text is drawn anew; a stage's noise is its own.
  assert not np.array_equal(large[0], large[2])
  other = upscaler.upscale(small, TEXTS, seed=3, stage=2)
  assert not np.array_equal(middle, other)


def test_a_picture_does_not_change_with_its_batch_mates(
  stages: cascade.Cascade,
) -> None:
  together = stages.generate(["a", "b", "c"])
  alone = stages.generate(["c"])
  difference = together[2].astype(int) - alone[0].astype(int)
  assert np.abs(difference).max() <= 1


def test_a_stage_s_picture_goes_on_where_the_cascade_did(
  stages: cascade.Cascade, upscaler: Any, last: Any
) -> None:
  small, _, large = stages.stages(TEXTS)
  rest = cascade.Cascade(upscalers=(upscaler, last))
  assert rest.low_size == SMALL
  assert np.array_equal(rest.upscale(small, TEXTS), large)
  with pytest.raises(ValueError, match="no stage of this cascade draws"):
    rest.generate(TEXTS)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"augmentation": 1.5}, "augmentation=1.5 is not in 0 .. 1"),
    ({"upscale_guidance_scale": float("nan")}, "guidance_scale=nan"),
    ({"upscale_num_steps": 0}, "num_steps=0 must be positive"),
  ],
)
def test_what_a_later_stage_refuses_is_said_before_anything_is_drawn(
  stages: cascade.Cascade, options: dict[str, float], message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    next(stages.stages(TEXTS, **options))


def test_pictures_of_any_size_are_fitted(upscaler: Any) -> None:
  stage = cascade.Cascade(upscalers=(upscaler,))
  picture = np.zeros((40, 40, 3), np.uint8)
  fitted = stage.fit(picture)
  assert fitted.shape == (*SMALL, 3)
  assert fitted[:, 0].min() == 255 and fitted[:, 4].max() == 0
  same = np.random.default_rng(0).integers(0, 256, (*SMALL, 3), np.uint8)
  assert np.array_equal(stage.fit(same), same)


def test_augmentation_is_bounded_by_what_was_learnt() -> None:
  model = upscaling_model(max_augmentation=0.5)
  stage = with_weights(inference.Upscaler, model)
  pictures = np.zeros((1, *SMALL, 3), np.uint8)
  one, other = (
    stage.upscale(pictures, ["a"], augmentation=level) for level in (0.0, 0.5)
  )
  assert not np.array_equal(one, other)
  for level in (0.6, -0.1, float("nan")):
    with pytest.raises(ValueError, match=r"0 \.\. 0\.5"):
      stage.upscale(pictures, ["a"], augmentation=level)


@pytest.mark.parametrize(
  ("pictures", "texts", "says"),
  [
    (np.zeros((1, 4, 4, 3), np.uint8), ["a"], "4 x 8 pixels"),
    (np.zeros((2, 4, 8, 3), np.uint8), ["a"], "1 of 4 x 8"),
    (np.zeros((0, 4, 8, 3), np.uint8), [], "at least one text"),
  ],
)
def test_other_pictures_than_wanted_are_refused(
  upscaler: Any, pictures: Any, texts: list[str], says: str
) -> None:
  with pytest.raises(ValueError, match=says):
    upscaler.upscale(pictures, texts)


# --- Stages that do not fit ---------------------------------------------------


def test_sizes_that_do_not_chain_are_named() -> None:
  with pytest.raises(ValueError) as error:
    cascade.check_chain(
      {"base": base_model((8, 8)), "sr": upscaling_model((32, 16))}
    )
  for part in ("base gives pictures of 8 x 8", "sr enlarges 16 x 8 to 32 x 16"):
    assert part in str(error.value)
  with pytest.raises(ValueError, match="needs a stage"):
    cascade.Cascade()


@pytest.fixture
def folders(
  monkeypatch: pytest.MonkeyPatch, base: Any, upscaler: Any, last: Any
) -> dict[str, Any]:
  """{folder: its model}, in place of model.gin files; "restored" ones."""
  runs = {"base": base, "sr": upscaler, "larger": last}
  restored: list[str] = []

  def load(path: pathlib.Path, trust_config: bool = False) -> Any:
    name = path.parent.name
    return tiny.make_ocr_model() if name == "reader" else runs[name].model

  def restore(cls: Any, model: Any, folder: str, **_: Any) -> Any:
    cls.check(model, folder)
    restored.append(folder)
    return runs[folder]

  monkeypatch.setattr(cascade.config, "load_model_gin", load)
  monkeypatch.setattr(trained.Trained, "restore", classmethod(restore))
  return {"restored": restored}


@pytest.mark.parametrize(
  ("dirs", "has_base", "says"),
  [
    (["sr", "larger"], True, "sr: this model enlarges pictures"),
    (["base", "base"], True, "base: this model draws texts"),
    (["base"], False, "base: this model draws texts"),
    (["base", "reader"], True, "reader: this model reads"),
    (["reader"], True, "reader: this model reads"),
    (["base", "larger"], True, "larger enlarges 8 x 16"),
    (["base", "sr", "sr"], True, r"sr \(stage 2\) enlarges 4 x 8"),
    ([], True, "needs a run's folder"),
  ],
)
def test_runs_in_the_wrong_place_are_refused_before_weights_are_read(
  folders: Any, dirs: list[str], has_base: bool, says: str
) -> None:
  with pytest.raises(ValueError, match=says):
    cascade.Cascade.from_model_dirs(dirs, has_base=has_base)
  assert not folders["restored"]


# --- The command --------------------------------------------------------------


def run(*arguments: str) -> int:
  return cli.main(["generate", *arguments])


def test_the_command_draws_through_all_stages(
  folders: Any, tmp_path: pathlib.Path, stages: cascade.Cascade
) -> None:
  out = str(tmp_path / "x.png")
  places = ["--model_dir", "base", "--upscale_dir", "sr"]
  code = run("a", "b", *places, "--upscale_dir", "larger", "--out", out)
  assert not code and folders["restored"] == ["base", "sr", "larger"]
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ["x-0.png", "x-1.png"]
  drawn = np.asarray(Image.open(tmp_path / "x-1.png"))
  expected = stages.generate(["a", "b"])[1]
  assert np.abs(drawn.astype(int) - expected.astype(int)).max() <= 1
  # With every stage's; and enlarging one of them gives what came after it.
  one = str(tmp_path / "y.png")
  assert not run("b", *places, "--stages", "--out", one)
  middle = Image.open(one)
  assert middle.size == MIDDLE[::-1]
  small = str(tmp_path / "y.4x8.png")
  again = str(tmp_path / "z.png")
  assert not run("b", "--image", small, "--upscale_dir", "sr", "--out", again)
  assert np.array_equal(np.asarray(Image.open(again)), np.asarray(middle))
  # Files that are there stay, the stages' too.
  (tmp_path / "y.png").unlink()
  assert run("b", *places, "--stages", "--out", one) == 2
  assert not (tmp_path / "y.png").exists()


def test_a_picture_of_one_s_own_is_fitted_and_that_is_said(
  folders: Any, tmp_path: pathlib.Path, capsys: Any
) -> None:
  Image.new("RGB", (30, 20)).save(tmp_path / "mine.png")
  mine, out = str(tmp_path / "mine.png"), str(tmp_path / "x.png")
  assert not run("a", "--image", mine, "--upscale_dir", "sr", "--out", out)
  assert Image.open(out).size == MIDDLE[::-1]
  assert "20 x 30 pixels, fitted into 4 x 8." in capsys.readouterr().err


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    ([], "--model_dir"),
    (["--model_dir", "base", "--stages"], "--stages needs --upscale_dir"),
    (["--model_dir", "base", "--augmentation", "0"], "needs --upscale_dir"),
    (["--image", "mine.png"], "--image needs --upscale_dir"),
    (["--upscale_dir", "sr"], "give --model_dir"),
    (
      ["--model_dir", "base", "--image", "mine.png", "--upscale_dir", "sr"],
      "not both",
    ),
    (
      ["--image", "a.png", "--image", "b.png", "--upscale_dir", "sr"],
      "2 --image for 1 texts",
    ),
    (
      ["--image", "mine.png", "--upscale_dir", "sr", "--num_steps", "3"],
      "--num_steps is for --model_dir",
    ),
    (["--image", "bad.png", "--upscale_dir", "sr"], "bad.png: not an image"),
    (["--image", "none.png", "--upscale_dir", "sr"], "none.png"),
    (["--model_dir", "sr"], "sr: this model enlarges"),
    (["--model_dir", "base", "--upscale_dir", "larger"], "larger enlarges"),
    (
      ["--model_dir", "base", "--upscale_dir", "sr", "--augmentation", "2"],
      "augmentation=2.0 is not in 0 .. 1.0",
    ),
  ],
)
def test_a_user_s_mistake_is_one_line(
  folders: Any,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  capsys: Any,
  flags: list[str],
  says: str,
) -> None:
  monkeypatch.chdir(tmp_path)
  Image.new("RGB", (8, 4)).save("mine.png")
  pathlib.Path("bad.png").write_bytes(b"GIF89a, almost")
  assert run("text", *flags, "--out", "x.png") == 2
  error = capsys.readouterr().err
  assert says in error and "Traceback" not in error
  assert not pathlib.Path("x.png").exists()


# --- In the programs ----------------------------------------------------------


class Pictures(tiny.Batches):
  """What a validation split gives, for pictures of dots' size."""

  opened = 0

  def __init__(self, **keywords: Any):
    super().__init__(**keywords)
    Pictures.opened += 1


def test_a_run_shows_small_drawn_and_true_pictures(
  upscaler: Any, tmp_path: pathlib.Path
) -> None:
  Pictures.opened = 0
  draw = evaluation.make_grid(upscaler.model, ["unused"], tmp_path, Pictures)
  assert draw is not None and not Pictures.opened
  images = draw(upscaler.params, None, 7)
  draw(upscaler.params, None, 8)
  assert Pictures.opened == 1
  assert images.shape == (5, MIDDLE[0], 3 * MIDDLE[1], 3)
  true = tiny.make_batch(1, 0)["images"][0]
  np.testing.assert_array_equal(images[0, :, 2 * MIDDLE[1] :], true)
  square = images[0, :2, :2]
  np.testing.assert_allclose(
    square, np.broadcast_to(true[:2, :2].mean((0, 1)), (2, 2, 3)), atol=1e-6
  )
  shown = Image.open(tmp_path / "samples" / "step_00000007.png")
  assert shown.size == (3 * MIDDLE[1], 5 * MIDDLE[0])
  assert evaluation.make_grid(upscaler.model, [], tmp_path, None) is None


def test_a_data_set_is_enlarged_and_scored(
  upscaler: Any, tmp_path: pathlib.Path
) -> None:
  batch = tiny.make_batch(3)
  rngs = jax.random.split(jax.random.key(0), 3)
  pictures = upscaler.predict(batch, rngs)
  true = feature_converters.to_pixels(batch["images"])
  squares = true.reshape(3, 4, 2, 8, 2, 3).astype(float).mean(axis=(2, 4))
  assert np.abs(pictures["low"] - squares).max() <= 1
  assert pictures["image"].shape == true.shape
  first = {name: x[0] for name, x in pictures.items()} | {"target": true[0]}
  record = inference._write(tmp_path, 4, first)
  assert record["image"] == "000004.png" and record["low"] == "000004.low.png"
  assert np.array_equal(
    np.asarray(Image.open(tmp_path / "000004.low.png")), first["low"]
  )
  error = np.mean((first["image"].astype(float) - true[0]) ** 2)
  np.testing.assert_allclose(
    record["psnr"], 10 * np.log10(255**2 / error), rtol=1e-6
  )
  # Noise has no smooth picture.
  assert 5 < record["psnr_bilinear"] < 20
  assert inference.psnr(true[0], true[0]) == 99


def test_a_plan_counts_what_enlarging_costs(upscaler: Any) -> None:
  batch = tiny.make_batch(2)
  [(name, use, arguments)] = planning.uses(
    upscaler.model, upscaler.params, None, batch
  )
  assert name == "draw"
  drawn = jax.eval_shape(use, *arguments)
  assert drawn.shape == (2, *MIDDLE, 3)
