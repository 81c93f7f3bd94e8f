"""The published predictors' files, and scores that were made by others."""

import json
import pickle
import zipfile

import numpy as np
import pytest

from byt5_diffusion import aesthetics
from byt5_diffusion.conversion import names

_FILES = {
  "laion_v1": ("sa_0_4_vit_l_14_linear.pth", 1),
  "improved_v2": ("sac+logos+ava1-l14-linearMSE.pth", 2),
}


def _embeddings(folder):
  return np.stack(
    [
      np.load(folder / f"rating{i}.npy", allow_pickle=False).reshape(-1)
      for i in range(10)
    ]
  )


@pytest.mark.parametrize("key", _FILES)
def test_published_scores_are_reproduced(shared_data, key):
  folder = shared_data / "fixtures" / "aesthetics"
  file, version = _FILES[key]
  predictor = aesthetics.load(folder / file)
  expected = json.loads((folder / "expected_scores_float64.json").read_text())
  embeddings = _embeddings(folder)
  found = predictor.scores(embeddings)
  wanted = [expected[f"rating{i}"][key] for i in range(10)]
  np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)
  assert predictor.version == version
  weight, bias = predictor.affine()
  unit = embeddings.astype(np.float64)
  unit /= np.linalg.norm(unit, axis=1, keepdims=True)
  np.testing.assert_allclose(unit @ weight + bias, found, atol=1e-9)


def _relu_arrays(sizes=(768, 1024, 128, 64, 16, 1)):
  rng = np.random.default_rng(0)
  return {
    f"layers.{place}.{part}": rng.normal(
      size=(out, into) if part == "weight" else (out,)
    ).astype(np.float32)
    * 0.1
    for place, into, out in zip(
      (0, 3, 6, 9, 11), sizes, sizes[1:], strict=False
    )
    for part in ("weight", "bias")
  }


def test_relu_variant_is_what_torch_computes(tmp_path):
  torch = pytest.importorskip("torch")
  arrays = {k: torch.tensor(v) for k, v in _relu_arrays().items()}
  torch.save(arrays, tmp_path / "relu.pth")
  layers = []
  for i, place in enumerate((0, 3, 6, 9, 11)):
    weight = arrays[f"layers.{place}.weight"]
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = weight
    layer.bias.data = arrays[f"layers.{place}.bias"]
    layers += [layer, torch.nn.ReLU()] if i < 3 else [layer]
  x = torch.nn.functional.normalize(torch.randn(5, 768))
  with torch.no_grad():
    wanted = torch.nn.Sequential(*layers)(x)[:, 0].numpy()
  predictor = aesthetics.load(tmp_path / "relu.pth")
  np.testing.assert_allclose(predictor.scores(x.numpy()), wanted, rtol=1e-4)
  with pytest.raises(ValueError, match="no affine map"):
    predictor.affine()


def test_arrays_that_do_not_fit_are_refused(tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "x.pth"
  torch.save({"weight": torch.ones(1, 700), "bias": torch.ones(1)}, path)
  with pytest.raises(names.ConversionError, match="no aesthetic predictor"):
    aesthetics.load(path)
  torch.save({"weight": torch.tensor(1.0), "bias": torch.ones(1)}, path)
  with pytest.raises(names.ConversionError, match="no aesthetic predictor"):
    aesthetics.load(path)
  torch.save({"something": torch.ones(1)}, path)
  with pytest.raises(names.ConversionError, match="something"):
    aesthetics.load(path)


def test_a_pickle_is_not_run(tmp_path):
  class Evil:
    def __reduce__(self):
      return (open, (str(tmp_path / "owned"), "w"))

  path = tmp_path / "x.pth"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x/data.pkl", pickle.dumps(Evil(), 2))
  with pytest.raises(names.ConversionError, match="Nothing of it was run"):
    aesthetics.load(path)
  assert not (tmp_path / "owned").exists()


def test_embeddings_of_another_shape_or_without_direction_are_refused():
  layer = (np.ones((1, 768)), np.zeros(1))
  predictor = aesthetics.Predictor(version=1, layers=(layer,))
  with pytest.raises(ValueError, match="768"):
    predictor.scores(np.ones((2, 512)))
  with pytest.raises(ValueError, match="finite"):
    predictor.scores(np.zeros((2, 768)))
