"""Prompts that others have published to measure how models spell.

  drawtext    DrawText (Liu et al. 2022): sentences that quote what to write,
              a .txt file per category
  wikispell   WikiSpell (the same): words in seven languages, a .tsv file per
              language, split and bucket of frequency; put into a sentence here
  longtext    LongText-Bench (X-Omni): long prompts in English and Chinese,
              .jsonl, with lists of what must be legible

Nothing of them is for training: there is a split "test", and what the files
call otherwise. WikiSpell's dev and test words are drawn from the same pools,
and where these are small (Thai, Korean) they are the same words: what is chosen
by dev is known to test.
"""

import collections
import hashlib
import json
import os
import pathlib
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from byt5_diffusion import feature_converters, quotes
from byt5_diffusion.data import annotated, languages, supplies

# DrawText's own sentence, which WikiSpell's words are put into.
SENTENCE = 'A sign with the word "{}" written on it.'
_MAX_FILE = 64 * 2**20
_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_BOM = "\ufeff"
# Where nothing is quoted: a letter, or a name behind one of these words.
_UNQUOTED = re.compile(
  r"\b(?:letters?|company|logo for|called) ((?:[A-Z]\w*)(?: [A-Z]\w*)*)"
)


class Prompt(NamedTuple):
  """One of them.

  Attributes:
    key: names it for good: "<set>/<category>/<its line or number>".
    text: what a model is asked for.
    strings: what must be legible; () where the prompt leaves that open.
    language: mC4's code, of the strings.
    category: the set's own.
    split: "test", mostly.
  """

  key: str
  text: str
  strings: tuple[str, ...]
  language: str
  category: str
  split: str = "test"

  @property
  def example_id(self) -> str:
    """As in predictions.jsonl of what was drawn of it."""
    return "".join(f"{x:08x}" for x in feature_converters.example_id(self.key))


class PromptSupply:
  """A supplies.Supply of prompts, each with a white picture.

  Attributes:
    name, fingerprint, sizes, endless: see supplies.Supply.
    prompts: {split: [Prompt]}, in the files' order, repeated as asked for.
  """

  endless = False

  def __init__(
    self, name: str, prompts: Sequence[Prompt], images_per_prompt: int = 1
  ):
    """Repeats have keys of their own, so each is drawn from other noise."""
    if images_per_prompt < 1:
      raise ValueError(f"{images_per_prompt=} must be positive.")
    if not prompts:
      raise ValueError(f"{name}: there is no such prompt.")
    keys = [prompt.key for prompt in prompts]
    if twice := [key for key, n in collections.Counter(keys).items() if n > 1]:
      raise ValueError(f"{name}: several files have a prompt {twice[0]}.")
    self.name = name
    self.prompts: dict[str, list[Prompt]] = {}
    for prompt in prompts:
      held = self.prompts.setdefault(prompt.split, [])
      held += [
        prompt._replace(key=f"{prompt.key}#{i}") if i else prompt
        for i in range(images_per_prompt)
      ]
    self.sizes: Mapping[str, int] = {
      split: len(held) for split, held in self.prompts.items()
    }
    made = repr(self.prompts).encode("utf-8", "surrogatepass")
    self.fingerprint = hashlib.sha256(made).hexdigest()[:16]

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """See supplies.Supply."""
    del seed, language
    prompt = self.prompts[split][index]
    return annotated.Annotated(
      key=prompt.key,
      image=np.full((8, 8, 3), 255, np.uint8),
      text=prompt.text,
      language=prompt.language,
    )

  def languages(self, split: str) -> np.ndarray:
    """See supplies.Supply."""
    rows = [languages.row(prompt.language) for prompt in self.prompts[split]]
    return np.array([languages.OTHER if r < 0 else r for r in rows], np.uint8)


# --- DrawText -----------------------------------------------------------------


def open_drawtext(
  path: str, *, categories: str = "", images_per_prompt: int = 1
) -> PromptSupply:
  """DrawText's files.

  Args:
    path: of one, or a folder of them.
    categories: such as "top_1_pct,1_word"; "" for all.
    images_per_prompt: the paper's is 4.
  """
  prompts = [
    prompt for file in _files(path, ".txt") for prompt in _drawtext(file)
  ]
  kept = _chosen(prompts, categories, lambda prompt: prompt.category)
  return PromptSupply(f"drawtext:{path}", kept, images_per_prompt)


def _drawtext(path: pathlib.Path) -> Iterator[Prompt]:
  # en.test.top_1_pct.txt, irregular_past.txt, 1_word.txt
  category = path.stem.split(".")[-1]
  for number, line in _lines(path):
    is_word = not re.search(r"\s", line)
    text = SENTENCE.format(line) if is_word else line
    strings = (line,) if is_word else tuple(quotes.strings(line))
    if not strings:
      strings = tuple(_UNQUOTED.findall(line))
    key = f"drawtext/{category}/{number}"
    yield Prompt(key, text, strings, "en", category)


# --- WikiSpell ----------------------------------------------------------------


def open_wikispell(
  path: str,
  *,
  only: str = "",
  categories: str = "",
  sentence: str = SENTENCE,
  max_words: int = 0,
  images_per_prompt: int = 1,
) -> PromptSupply:
  """WikiSpell's files, their words put into a sentence.

  Args:
    path: of one, or a folder of them.
    only: languages, such as "ko,th"; "" for all.
    categories: buckets, such as "top_1_pct"; "" for all.
    sentence: with {} where the word is to stand.
    max_words: the first ones of each file; 0 for all.
    images_per_prompt: of each word.
  """
  if sentence.count("{}") != 1:
    raise ValueError(f"{sentence=} must have one {{}} for the word.")
  prompts = []
  for file in _files(path, ".tsv"):
    found = list(_wikispell(file, sentence))
    prompts += found[:max_words] if max_words else found
  kept = _chosen(prompts, only, lambda prompt: prompt.language)
  kept = _chosen(kept, categories, lambda prompt: prompt.category)
  return PromptSupply(f"wikispell:{path}", kept, images_per_prompt)


def _wikispell(path: pathlib.Path, sentence: str) -> Iterator[Prompt]:
  # ko.test.top_1_pct.tsv; what is trained on has no bucket.
  code, split, *bucket = [*path.stem.split("."), "", ""][:3]
  if split not in _SPLITS or languages.code(code) == languages.UNKNOWN:
    raise ValueError(
      f"{path}: WikiSpell's files are called <language>.<train, dev or "
      "test>.<bucket>.tsv."
    )
  category = bucket[0] or split
  for number, line in _lines(path):
    word, _, spelled = line.partition("\t")
    # Code points, so that vowels above and below Thai letters stand alone.
    if not word or spelled.split(" ") != list(word):
      raise ValueError(
        f"{path}:{number}: not a word, a tab, and its characters between "
        "spaces."
      )
    yield Prompt(
      key=f"wikispell/{code}/{split}/{category}/{number}",
      text=sentence.replace("{}", word),
      strings=(word,),
      language=languages.code(code),
      category=category,
      split=_SPLITS[split],
    )


# --- LongText-Bench -----------------------------------------------------------


def open_longtext(
  path: str,
  *,
  only: str = "",
  categories: str = "",
  images_per_prompt: int = 1,
) -> PromptSupply:
  """LongText-Bench's text_prompts.jsonl and text_prompts_zh.jsonl.

  Args:
    path: of one, or a folder of them.
    only: "en" or "zh"; "" for both.
    categories: such as "sign/short,poster/long"; "" for all.
    images_per_prompt: of each prompt.
  """
  prompts = [
    prompt for file in _files(path, ".jsonl") for prompt in _longtext(file)
  ]
  kept = _chosen(prompts, only, lambda prompt: prompt.language)
  kept = _chosen(kept, categories, lambda prompt: prompt.category)
  return PromptSupply(f"longtext:{path}", kept, images_per_prompt)


def _longtext(path: pathlib.Path) -> Iterator[Prompt]:
  language = "zh" if path.stem.endswith("_zh") else "en"
  for number, line in _lines(path):
    try:
      found = json.loads(line)
      prompt = Prompt(
        key=f"longtext/{language}/{int(found['prompt_id'])}",
        text=_string(found["prompt"]),
        strings=tuple(_string(text) for text in found["text"]),
        language=language,
        category=f"{found['category']}/{found['length']}",
      )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise ValueError(
        f"{path}:{number}: not as LongText-Bench has it, with category, length,"
        f" prompt, text and prompt_id ({type(error).__name__})."
      ) from error
    yield prompt


def _string(value: Any) -> str:
  if not isinstance(value, str) or not value.strip():
    raise ValueError("no text")
  return value


# --- files --------------------------------------------------------------------


def _files(path: str, ending: str) -> list[pathlib.Path]:
  """A file, or all of a folder and below it, in order."""
  root = pathlib.Path(path).expanduser()
  if not root.exists():
    raise ValueError(f"{path}: there is no such file or folder.")
  found = [root]
  if root.is_dir():
    found = sorted(x for x in root.rglob(f"*{ending}") if x.is_file())
  if not found or not found[0].is_file():
    raise ValueError(f"{path}: there is no {ending} file.")
  return found


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Numbers from 1 on and lines of a file, but for empty ones."""
  found = path.stat()
  if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_FILE:
    raise ValueError(f"{path}: not a file of at most 64 MiB.")
  try:
    text = path.read_bytes().decode("utf-8").removeprefix(_BOM)
  except UnicodeDecodeError as error:
    raise ValueError(f"{path}: not UTF-8 (byte {error.start}).") from None
  # Not splitlines, which ends lines at more than line ends.
  for number, line in enumerate(text.split("\n"), start=1):
    line = line.removesuffix("\r")
    if line.strip():
      yield number, line


def _chosen(
  prompts: Sequence[Prompt], wanted: str, value: Callable[[Prompt], str]
) -> list[Prompt]:
  """Those whose value is in a list with commas; "" for all of them."""
  names = {name for name in wanted.split(",") if name}
  known = {value(prompt) for prompt in prompts}
  if names - known:
    raise ValueError(
      f"there is no {', '.join(sorted(names - known))}; there are "
      f"{', '.join(sorted(known))}."
    )
  return [p for p in prompts if not names or value(p) in names]


# --- by name ------------------------------------------------------------------

TABLE: Mapping[str, supplies.Kind] = {
  "drawtext": supplies.Kind(open_drawtext, ("",)),
  "wikispell": supplies.Kind(open_wikispell, ("",)),
  "longtext": supplies.Kind(open_longtext, ("",)),
}


def prompts_of(name: str, split: str = "test") -> list[Prompt]:
  """The prompts that a name says, with or without a size of pictures.

  Args:
    name: as of a task: "drawtext:/data/drawtext+categories=top_1_pct".
    split: which.

  Raises:
    ValueError: there are none.
  """
  found = re.fullmatch(
    r"(?P<what>\w+:.+?)(?P<size>@\d+x\d+)?(?P<options>(\+\w+=[^+]*)*)",
    name,
    re.DOTALL,
  )
  parsed = None
  if found:
    whole = f"{found['what']}{found['size'] or '@8x8'}{found['options']}"
    parsed = supplies.parse(TABLE, whole)
  if parsed is None or not isinstance(parsed.supply, PromptSupply):
    raise ValueError(
      f"{os.fspath(name)!r} names no prompts. Write {' or '.join(TABLE)}, a "
      "colon, and the path of the published files."
    )
  if split not in parsed.supply.prompts:
    raise ValueError(
      f"{name!r} has no split {split!r}, only {sorted(parsed.supply.prompts)}."
    )
  return parsed.supply.prompts[split]
