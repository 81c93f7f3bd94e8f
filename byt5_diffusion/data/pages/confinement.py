"""What a process may no longer do, by the kernel's own means.

Three walls, each as far as the system has it: limits of memory and of what is
written (POSIX), files and TCP (Linux' Landlock), sockets and new programs
(Linux' seccomp). None needs rights, and none can be taken down again.
"""

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Iterable
from typing import NamedTuple


class _Machine(NamedTuple):
  """System calls of a machine, by its own numbers.

  A renderer draws: it starts no program or process, opens no connection and
  looks into no other process.
  """

  architecture: int
  clone: int
  refused: dict[str, int]


_MACHINES = {
  "x86_64": _Machine(
    0xC000003E,
    56,
    {
      "socket": 41,
      "connect": 42,
      "sendto": 44,
      "bind": 49,
      "socketpair": 53,
      "fork": 57,
      "vfork": 58,
      "execve": 59,
      "kill": 62,
      "ptrace": 101,
      "process_vm_readv": 310,
      "process_vm_writev": 311,
      "execveat": 322,
      "io_uring_setup": 425,
    },
  ),
  "aarch64": _Machine(
    0xC00000B7,
    220,
    {
      "ptrace": 117,
      "kill": 129,
      "socket": 198,
      "socketpair": 199,
      "bind": 200,
      "connect": 203,
      "sendto": 206,
      "execve": 221,
      "process_vm_readv": 270,
      "process_vm_writev": 271,
      "execveat": 281,
      "io_uring_setup": 425,
    },
  ),
}
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _HAS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_CLONE3, _THREAD = 435, 0x10000
_X32 = 0x40000000  # Other numbers for the same calls of x86_64.

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
# Landlock's version -> how many rights on files it knows.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_TCP = 3  # bind and connect


def confine(*, memory: int, readable: Iterable[str]) -> tuple[str, ...]:
  """Takes rights from this process for good.

  Args:
    memory: bytes that it may take on top of what it has.
    readable: files and folders that it may still read; it writes none.

  Returns:
    The walls that stand: of "limits", "landlock", "seccomp".
  """
  _limit(memory)
  walls = ["limits"]
  if platform.system() != "Linux":
    return tuple(walls)
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
    return tuple(walls)
  if _landlock(libc, readable):
    walls.append("landlock")
  if _seccomp(libc):
    walls.append("seccomp")
  return tuple(walls)


def _limit(memory: int) -> None:
  """No core files, nothing written to files, no more than so much memory."""
  for kind, value in (
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_NOFILE, 64),
    (resource.RLIMIT_AS, _address_space() + memory),
  ):
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY:
      value = min(value, most)
    try:
      resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):  # macOS takes no limit of the address space.
      if kind != resource.RLIMIT_AS:
        raise


def _address_space() -> int:
  """Bytes of address space that this process has."""
  try:
    with open("/proc/self/statm", encoding="ascii") as file:
      return int(file.read().split()[0]) * resource.getpagesize()
  except OSError:
    return 2**30


def _landlock(libc: ctypes.CDLL, readable: Iterable[str]) -> bool:
  """Whether nothing but `readable` can be opened from now on."""
  version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
  if version < 1:
    return False
  rights = (1 << _FILE_RIGHTS.get(version, 16)) - 1
  ruleset = struct.pack("=Q", rights)
  if version >= 4:
    ruleset += struct.pack("=Q", _TCP)
  handle = libc.syscall(
    _CREATE_RULESET, ruleset, ctypes.c_size_t(len(ruleset)), 0
  )
  if handle < 0:
    return False
  try:
    for path in readable:
      _permit(libc, handle, path)
    return not libc.syscall(_RESTRICT_SELF, handle, 0)
  finally:
    os.close(handle)


def _permit(libc: ctypes.CDLL, handle: int, path: str) -> None:
  try:
    target = os.open(path, os.O_PATH | os.O_CLOEXEC)
  except OSError:
    return  # What is not there needs no permission.
  try:
    rights = _READ_FILE
    if os.path.isdir(path):
      rights |= _READ_FOLDER
    libc.syscall(_ADD_RULE, handle, 1, struct.pack("=Qi", rights, target), 0)
  finally:
    os.close(target)


class _Program(ctypes.Structure):
  _fields_ = (
    ("length", ctypes.c_ushort),
    ("instructions", ctypes.c_char_p),
  )


def _seccomp(libc: ctypes.CDLL) -> bool:
  """Whether the calls of _MACHINES fail with EPERM from now on."""
  known = _MACHINES.get(platform.machine())
  if known is None:
    return False
  calls = sorted(known.refused.values())

  def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)

  left = len(calls)
  program = [
    step(_LOAD, 4),
    step(_EQUAL, known.architecture, yes=1),
    step(_RETURN, _EPERM),  # A call by another machine's table.
    step(_LOAD, 0),
    step(_AT_LEAST, _X32, yes=left + 6),
    *(step(_EQUAL, n, yes=left - i + 5) for i, n in enumerate(calls)),
    # Where this one is absent, the C library takes the older one, whose flags
    # can be seen: threads are made as ever, processes are not.
    step(_EQUAL, _CLONE3, yes=3),
    step(_EQUAL, known.clone, no=3),
    step(_LOAD, 16),
    step(_HAS, _THREAD, yes=1, no=2),
    step(_RETURN, _ENOSYS),
    step(_RETURN, _ALLOW),
    step(_RETURN, _EPERM),
  ]
  code = b"".join(program)
  wanted = _Program(len(program), code)
  return not libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(wanted), 0, 0)
