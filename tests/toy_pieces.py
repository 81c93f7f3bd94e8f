"""A SentencePiece model of some hundred pieces, trained within a second."""

import functools
import io
import pathlib

import pytest

TEXTS = [
  "a sign that says “open”",
  "a cat that reads the newspaper",
  "вег ζγα 日山人 שלום नमस्ते",
  "the quick brown fox jumps over the lazy dog",
]


@functools.cache
def content(**options) -> bytes:
  """The model's bytes; T5's numbers of padding and end unless told."""
  spm = pytest.importorskip("sentencepiece")
  written = io.BytesIO()
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS * 20),
    model_writer=written,
    hard_vocab_limit=False,
    minloglevel=2,
    **(
      {"vocab_size": 100, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
      | options
    ),
  )
  return written.getvalue()


def write(path: pathlib.Path, **options) -> pathlib.Path:
  """The path, with the model in it."""
  path.write_bytes(content(**options))
  return path
