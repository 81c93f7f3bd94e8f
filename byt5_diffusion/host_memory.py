"""Memory of the host's processor."""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Lets glibc hand freed blocks out again instead of returning them.

  XLA's CPU backend frees its temporaries after each step. Given back to the
  kernel, the same pages are mapped and zeroed again in the next: a fifth of a
  small network's training step. The process keeps its peak size instead.

  Returns:
    Whether it worked; False where the C library is another.
  """
  if not sys.platform.startswith("linux"):
    return False
  try:
    mallopt = ctypes.CDLL("libc.so.6").mallopt
  except (OSError, AttributeError):
    return False
  return all(
    mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1
    for name, value in (
      (_M_MMAP_MAX, 0),
      (_M_TRIM_THRESHOLD, 2**31 - 1),
      (_M_ARENA_MAX, 1),
    )
  )
