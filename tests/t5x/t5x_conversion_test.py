"""The real T5X reads what `convert --to t5x` writes, to the bit."""

import numpy as np
import pytest
import t5x_command

from byt5_diffusion.conversion import convert, sources, t5x_files

READ = """
import sys
import jax, numpy as np
from jax.experimental import pjit
pjit.PartitionSpec = jax.sharding.PartitionSpec
from flax import traverse_util
from t5x import checkpoints
tree = checkpoints.load_t5x_checkpoint(sys.argv[1], lazy_parameters=False)
flat = traverse_util.flatten_dict(tree["target"], sep="/")
# numpy's files know no bfloat16.
bits = {k: np.asarray(v).view(np.uint16 if v.dtype.itemsize == 2 else np.uint32)
        for k, v in flat.items()}
np.savez(sys.argv[2], **bits)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ("dtype", "scan"), [("float32", False), ("bfloat16", True)]
)
def test_t5x_reads_it(shared_data, tmp_path, monkeypatch, dtype, scan):
  # Arrays of several chunks among them.
  monkeypatch.setattr(t5x_files, "_CHUNK_BYTES", 1000)
  source = shared_data / "fixtures" / "t5x" / "orbax"
  out = tmp_path / "checkpoint_0"
  convert.convert(source, out, to="t5x", dtype=dtype, scan_layers=scan)
  t5x_command.run("-c", READ, str(out), str(tmp_path / "read.npz"))
  found = dict(np.load(tmp_path / "read.npz"))
  written = sources.t5x_checkpoints.open_source(out)
  arrays = written.read(list(written.shapes))
  assert set(found) == set(arrays) and len(arrays) == (29 if scan else 38)
  for name, array in arrays.items():
    assert array.dtype.name == dtype
    assert found[name].shape == array.shape
    assert found[name].tobytes() == array.tobytes(), name
