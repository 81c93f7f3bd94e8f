"""What a traced computation costs: operations and bytes, without running it.

Both walk the jaxpr, the list of operations as JAX traced it, before any
compiler has seen it. So the figures do not depend on a device, arrays of any
size cost nothing to plan, and loops (jax.lax.scan) count once per turn, which
XLA's own cost analysis does not do.

  matrix product  [.., M, K] x [.., K, N]   2 M N K
  convolution     2 per weight and place where the weight meets a true pixel:
                  neither padding nor the holes of dilation count
  elementwise     1 per element of the result; reductions: of the operand
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

PyTree = Any

# One operation per element.
_ELEMENTWISE = {
  "abs", "add", "add_any", "and", "atan2", "ceil", "clamp", "cos", "div", "eq",
  "erf", "erf_inv", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow",
  "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul",
  "ne", "neg", "nextafter", "not", "or", "pow", "rem", "round", "rsqrt",
  "select_n", "sign", "sin", "sqrt", "square", "sub", "tan", "tanh", "xor",
}  # fmt: skip
_REDUCTIONS = {
  "argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum",
  "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod",
  "reduce_sum",
}  # fmt: skip
# Not stored where one other operation takes the result: compilers fuse them.
_FUSED = _ELEMENTWISE | {
  "broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "iota",
  "reshape", "rev", "squeeze", "stop_gradient", "transpose",
}  # fmt: skip
# Called once, so their operations are the caller's.
_CALLS = {
  "call", "checkpoint", "closed_call", "core_call", "custom_jvp_call",
  "custom_vjp_call", "custom_vjp_call_jaxpr", "jit", "pjit", "remat", "remat2",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operations:
  """Floating-point operations; `unknown_loops` of unknown length count once."""

  products: int = 0
  convolutions: int = 0
  elementwise: int = 0
  unknown_loops: int = 0

  @property
  def total(self) -> int:
    return self.products + self.convolutions + self.elementwise

  def __add__(self, other: "Operations") -> "Operations":
    return Operations(
      **{
        field.name: getattr(self, field.name) + getattr(other, field.name)
        for field in dataclasses.fields(self)
      }
    )

  def times(self, count: int) -> "Operations":
    """Of `count` turns."""
    return Operations(
      products=self.products * count,
      convolutions=self.convolutions * count,
      elementwise=self.elementwise * count,
      unknown_loops=self.unknown_loops,
    )


# --- Operations --------------------------------------------------------------


def operations(jaxpr: Any) -> Operations:
  """Floating-point operations of a jaxpr, those of its inner ones included.

  Of a branch (jax.lax.cond) the dearest side counts.
  """
  total = Operations()
  for equation in _open(jaxpr).eqns:
    total += _equation(equation)
  return total


def _equation(equation: Any) -> Operations:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return Operations(products=_product(equation))
  if name == "conv_general_dilated":
    return Operations(convolutions=_convolution(equation))
  if name == "scan":
    return operations(params["jaxpr"]).times(params["length"])
  if name == "while":
    turn = operations(params["body_jaxpr"]) + operations(params["cond_jaxpr"])
    return turn + Operations(unknown_loops=1)
  if name == "cond":
    sides = [operations(branch) for branch in params["branches"]]
    return max(sides, key=lambda side: side.total)
  inner = list(_inner(params))
  if inner:
    return sum((operations(jaxpr) for jaxpr in inner), Operations())
  if name in _ELEMENTWISE:
    counted = equation.outvars[0].aval
  elif name in _REDUCTIONS:
    counted = equation.invars[0].aval
  else:
    return Operations()
  floating = jnp.issubdtype(equation.invars[-1].aval.dtype, jnp.floating)
  return Operations(elementwise=math.prod(counted.shape) if floating else 0)


def _product(equation: Any) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  depth = math.prod(left[axis] for axis in contracted)
  return 2 * math.prod(equation.outvars[0].aval.shape) * depth


def _convolution(equation: Any) -> int:
  params = equation.params
  numbers = params["dimension_numbers"]
  left, right = (variable.aval.shape for variable in equation.invars[:2])
  out = equation.outvars[0].aval.shape
  meetings = 1
  for i, (axis_in, axis_kernel, axis_out) in enumerate(
    zip(
      numbers.lhs_spec[2:],
      numbers.rhs_spec[2:],
      numbers.out_spec[2:],
      strict=True,
    )
  ):
    meetings *= _meetings(
      left[axis_in],
      right[axis_kernel],
      out[axis_out],
      stride=params["window_strides"][i],
      before=params["padding"][i][0],
      dilation=params["lhs_dilation"][i],
      kernel_dilation=params["rhs_dilation"][i],
    )
  batch, features = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
  return 2 * batch * features * right[numbers.rhs_spec[1]] * meetings


def _meetings(
  size: int,
  kernel: int,
  out: int,
  *,
  stride: int,
  before: int,
  dilation: int,
  kernel_dilation: int,
) -> int:
  """Pairs (output place, weight) along one axis that see a true element."""
  starts = np.arange(out)[:, None] * stride - before
  place = starts + np.arange(kernel)[None, :] * kernel_dilation
  inside = (place >= 0) & (place <= (size - 1) * dilation)
  return int(np.sum(inside & (place % dilation == 0)))


# --- Bytes -------------------------------------------------------------------


def tree_bytes(tree: PyTree) -> int:
  """Bytes of all arrays (or shapes) of a tree."""
  return sum(_size(leaf) for leaf in jax.tree.leaves(tree))


def peak_bytes(jaxpr: Any) -> int:
  """The most bytes of results that are alive at once; arguments don't count.

  Operations run in the order in which they were traced; a result lives until
  its last use, and the results of the whole to the end. Elementwise results
  with one use are taken to be fused into it. What a compiler adds (layouts,
  workspaces) or saves (another order, more fusion) is not known here.
  """
  body = _open(jaxpr)
  values: _Values = {}
  steps = list(_flat(body, values))
  results = [values[v] for v in _variables(body.outvars) if v in values]
  uses = collections.Counter(v for step in steps for v in step.operands)
  last = dict.fromkeys(results, len(steps))
  for place in range(len(steps) - 1, -1, -1):
    step = steps[place]
    until = place
    if step.name in _FUSED and uses[step.results[0]] == 1:
      until = last.get(step.results[0], place)
      if place < until < len(steps):
        step.results[0].size = 0
    for value in step.operands:
      last[value] = max(last.get(value, -1), until)
  return _sweep(steps, last)


def _sweep(steps: list["_Step"], last: Mapping["_Value", int]) -> int:
  ends: collections.Counter[int] = collections.Counter()
  alive = peak = 0
  for place, step in enumerate(steps):
    for value in step.results:
      alive += value.size
      ends[last.get(value, place)] += value.size
    peak = max(peak, alive + step.inside)
    alive -= ends[place]
  return peak


@dataclasses.dataclass(eq=False)
class _Value:
  """One result, distinct even where a function is called twice."""

  size: int


_Values = dict[Any, _Value]


@dataclasses.dataclass(frozen=True)
class _Step:
  """An operation of a flattened jaxpr; `inside`: bytes of a loop's body."""

  name: str
  operands: list[_Value]
  results: list[_Value]
  inside: int


def _flat(jaxpr: Any, values: _Values) -> Iterator[_Step]:
  """Operations, with calls replaced by what they call.

  `values` knows the results of what came before, and gets the new ones;
  variables that it does not know are arguments.
  """
  for equation in jaxpr.eqns:
    inner = list(_inner(equation.params))
    name = equation.primitive.name
    if name in _CALLS and inner:
      body = _open(inner[0])
      below: _Values = {}
      _bind(body.invars, equation.invars, below, values)
      yield from _flat(body, below)
      _bind(equation.outvars, body.outvars, values, below)
      continue
    # Each turn of a loop, or one side of a branch, has its own results.
    inside = max((peak_bytes(body) for body in inner), default=0)
    operands = [values[v] for v in _variables(equation.invars) if v in values]
    results = [_Value(_size(v.aval)) for v in equation.outvars]
    values.update(zip(equation.outvars, results, strict=True))
    yield _Step(name, operands, results, inside)


def _bind(
  names: list[Any], variables: list[Any], into: _Values, source: _Values
) -> None:
  for name, variable in zip(names, variables, strict=True):
    if not isinstance(variable, core.Literal) and variable in source:
      into[name] = source[variable]


def _variables(atoms: list[Any]) -> list[Any]:
  return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _size(aval: Any) -> int:
  dtype, shape = getattr(aval, "dtype", None), getattr(aval, "shape", ())
  return math.prod(shape) * getattr(dtype, "itemsize", 0)


# --- Jaxprs ------------------------------------------------------------------


def _open(jaxpr: Any) -> Any:
  return jaxpr.jaxpr if hasattr(jaxpr, "jaxpr") else jaxpr


def _inner(params: Mapping[str, Any]) -> Iterator[Any]:
  """The jaxprs inside an operation's parameters."""
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if hasattr(_open(item), "eqns"):
        yield item


def num_equations(jaxpr: Any) -> int:
  """Operations of a jaxpr, inner ones included once: how dear compiling is."""
  body = _open(jaxpr)
  return len(body.eqns) + sum(
    num_equations(inner)
    for equation in body.eqns
    for inner in _inner(equation.params)
  )
