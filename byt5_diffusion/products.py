"""Products and convolutions, each in the form that is fastest for its shape.

All forms of one operation have the same value and the same gradients but for
rounding. Which one runs depends on the platform and on static shapes alone. On
a TPU or GPU it is always XLA's own; the others are for XLA's CPU kernels, in
float32: those multiply [m, k] by [k, n] at full speed, but not what the rules
of differentiation make of it, x^T dy with the long axis first in both, nor a
convolution whose kernel must be turned around first.

The gradients of the CPU's forms, and those of bfloat16 products with float32
sums, are rules of their own (jax.custom_vjp), so there is no forward-mode
differentiation (jax.jvp) through them.

Letters in shape comments: B batch, h w height and width, C channels in, F
features out, kh kw the kernel's height and width, N rows of a matrix.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]
NO_PADDING: Padding = ((0, 0), (0, 0))
ConvForm = Callable[[jax.Array, jax.Array, int, Padding], jax.Array]


def on_cpu() -> bool:
  """True where XLA's CPU kernels run; they want other forms than a TPU."""
  return jax.default_backend() == "cpu"


def _own_gradient(*arrays: jax.Array) -> bool:
  return on_cpu() and all(x.dtype == jnp.float32 for x in arrays)


def product(
  x: jax.Array, kernel: jax.Array, output_dtype: str | None = None
) -> jax.Array:
  """x [..., C] times kernel [C, F], of output_dtype if that is given."""
  if _own_gradient(x, kernel) and output_dtype in (None, "float32"):
    y = _product(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])
  if output_dtype == "float32" and x.dtype == kernel.dtype == jnp.bfloat16:
    return _wide_product(x, kernel)
  return jnp.matmul(x, kernel, preferred_element_type=output_dtype)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return x @ kernel


def _product_forward(
  x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return x @ kernel, (x, kernel)


def _product_backward(
  saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = saved
  return dy @ kernel.T, transposed_product(x, dy)


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def _wide_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """bfloat16 [..., C] times [C, F] -> float32; bfloat16 on the way back, too.

  JAX's own gradient multiplies the float32 cotangent by x and kernel made
  float32: products that accelerators are slower at.
  """
  return jnp.matmul(x, kernel, preferred_element_type="float32")


def _wide_product_forward(
  x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _wide_product(x, kernel), (x, kernel)


def _wide_product_backward(
  saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = saved
  dy = dy.astype(x.dtype)
  return jnp.matmul(dy, kernel.T), jnp.einsum("...c,...f->cf", x, dy)


_wide_product.defvjp(_wide_product_forward, _wide_product_backward)


def transposed_product(x: jax.Array, y: jax.Array) -> jax.Array:
  """x^T y, [N, C] and [N, F] -> [C, F]: a kernel's gradient.

  With x turned around in memory first, unless it is so wide that this is not
  worth it. Measured on one core (GFLOP/s; N x C x F): 2048 x 256 x 64 158 for
  88, 512 x 512 x 128 177 for 96, 128 x 256 x 1024 211 for 176, 128 x 2304 x 256
  210 for 166, 2048 x 64 x 256 157 for 170; columns of 9 x 640 and more lose a
  tenth.
  """
  turned = x.T
  if x.shape[1] <= 4096:
    # Or XLA would fold it back into the product.
    turned = lax.optimization_barrier(turned)
  return turned @ y


def conv(
  x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int | Padding = 1
) -> jax.Array:
  """Cross-correlation, [B, h, w, C] with [kh, kw, C, F] -> [B, h', w', F]."""
  if isinstance(padding, int):
    padding = ((padding, padding), (padding, padding))
  if kernel.shape[:2] == (1, 1) and stride == 1 and padding == NO_PADDING:
    return conv_as_product(x, kernel, stride, padding)
  if stride == 1 and _own_gradient(x, kernel):
    return conv_by_gradient(x, kernel, padding, gradient_form(x, kernel))
  return _forward_form(x, stride)(x, kernel, stride, padding)


def _forward_form(x: jax.Array, stride: int) -> ConvForm:
  """Columns where the kernel outweighs the image.

  Measured on one core, forward and backward: 2 x 8 x 8 x 1280 2.2 times faster
  as columns, 2 x 16 x 16 x 640 1.3, 2 x 32 x 32 x 320 1.1 (0.8 forward), 64 x 8
  x 24 x 64 0.65.
  """
  few = math.prod(x.shape[:3]) <= 512 * stride**2
  return conv_as_columns if on_cpu() and few else conv_as_convolution


def conv_as_convolution(
  x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
  """conv by XLA's convolution."""
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def conv_as_columns(
  x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
  """conv as one product of columns(x) with the kernel as a matrix."""
  size = kernel.shape[:2]
  patches = columns(x, size, stride, padding)
  y = patches.reshape(-1, patches.shape[-1]) @ _matrix(kernel)
  return y.reshape(*patches.shape[:3], -1)


def columns(
  x: jax.Array, size: tuple[int, ...], stride: int, padding: Padding
) -> jax.Array:
  """What each output position sees of x: [B, h', w', kh kw C] (im2col)."""
  kh, kw = size
  # Of lax, where less than nothing is cut off.
  edges = [(low, high, 0) for low, high in ((0, 0), *padding, (0, 0))]
  x = lax.pad(x, jnp.zeros((), x.dtype), edges)
  batch, height, width, channels = x.shape
  rows, cols = (height - kh) // stride + 1, (width - kw) // stride + 1
  shifted = [
    lax.slice(
      x,
      (0, i, j, 0),
      (
        batch,
        i + (rows - 1) * stride + 1,
        j + (cols - 1) * stride + 1,
        channels,
      ),
      (1, stride, stride, 1),
    )
    for i in range(kh)
    for j in range(kw)
  ]
  return jnp.concatenate(shifted, axis=-1)


def _matrix(kernel: jax.Array) -> jax.Array:
  return kernel.reshape(-1, kernel.shape[-1])


def conv_as_product(
  x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
  """conv with a 1 x 1 kernel as a product: each position on its own."""
  del stride, padding
  return product(x, kernel[0, 0])


def upsample_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """conv(upsample(x), kernel) for a 3 x 3 kernel: -> [B, 2h, 2w, F]."""
  batch, height, width, _ = x.shape
  # The folded kernels cost 16 C F each step; few positions don't repay them.
  if on_cpu() and batch * height * width > 1024:
    return upsample_conv_by_parity(x, kernel)
  return conv(upsample(x), kernel)


def upsample(x: jax.Array) -> jax.Array:
  """Each position becomes two by two: [B, h, w, C] -> [B, 2h, 2w, C]."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)


def upsample_conv_by_parity(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """conv(upsample(x), kernel) without the doubled image.

  Of the three rows that an output row sees two are equal; so their taps add
  up, and each parity of output rows and columns is a convolution with its own
  2 x 2 kernel: 16 products for 36.
  """
  # [parity, tap of two, tap of three]
  fold = jnp.asarray(
    [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], kernel.dtype
  )
  kernels = jnp.einsum("pit,qju,tucf->pqijcf", fold, fold, kernel)
  b, h, w, _ = x.shape
  parities = [
    conv(x, kernels[p, q], padding=((1 - p, p), (1 - q, q)))
    for p in range(2)
    for q in range(2)
  ]
  y = jnp.stack(parities, axis=3).reshape(b, h, w, 2, 2, -1)
  return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)


# --- Gradients of convolutions of stride 1. ----------------------------------


def gradient_form(x: jax.Array, kernel: jax.Array) -> str:
  """Which of GRADIENT_FORMS is fastest for these shapes.

  Measured on one core, both gradients, GFLOP/s of "convolution", "columns_of_x"
  and "columns_of_dy": 2 x 4 x 4 x 256 70, 165, 105; 2 x 8 x 8 x 256 136, 196,
  189; 2 x 16 x 16 x (384 to 128) 186, 156, 217; 8 x 8 x 8 x 256 159, 168, 193;
  2 x 16 x 16 x 640 145, 203, 191; 2 x 32 x 32 x 64 177, 148, 158; 2 x 32 x 32 x
  320 178, 172, 186; 8 x 32 x 32 x 64 151, 98, 130.
  """
  positions = math.prod(x.shape[:3])
  if positions > 512 and min(kernel.shape[2:]) < 256:
    return "convolution"
  return "columns_of_x" if positions < 256 else "columns_of_dy"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_by_gradient(
  x: jax.Array, kernel: jax.Array, padding: Padding, form: str
) -> jax.Array:
  """conv of stride 1 whose gradients are of one of GRADIENT_FORMS."""
  del form
  return _forward_form(x, 1)(x, kernel, 1, padding)


def _conv_forward(
  x: jax.Array, kernel: jax.Array, padding: Padding, form: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return conv_by_gradient(x, kernel, padding, form), (x, kernel)


def _conv_backward(
  padding: Padding,
  form: str,
  saved: tuple[jax.Array, jax.Array],
  dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  return GRADIENT_FORMS[form](*saved, dy, padding)


conv_by_gradient.defvjp(_conv_forward, _conv_backward)


def _by_convolution(
  x: jax.Array, kernel: jax.Array, dy: jax.Array, padding: Padding
) -> tuple[jax.Array, jax.Array]:
  """XLA's own."""
  _, pullback = jax.vjp(
    lambda x, kernel: conv_as_convolution(x, kernel, 1, padding), x, kernel
  )
  return pullback(dy)


def _by_columns_of_x(
  x: jax.Array, kernel: jax.Array, dy: jax.Array, padding: Padding
) -> tuple[jax.Array, jax.Array]:
  """The columns of x again, and the gradient of columns put back in place."""
  size = kernel.shape[:2]
  patches, put_back = jax.vjp(lambda x: columns(x, size, 1, padding), x)
  dy = dy.reshape(-1, dy.shape[-1])
  dpatches = dy @ _matrix(kernel).T
  (dx,) = put_back(dpatches.reshape(patches.shape))
  patches = patches.reshape(-1, patches.shape[-1])
  return dx, transposed_product(patches, dy).reshape(kernel.shape)


def _by_columns_of_dy(
  x: jax.Array, kernel: jax.Array, dy: jax.Array, padding: Padding
) -> tuple[jax.Array, jax.Array]:
  """One set of columns, those that each position of x wrote to, for both.

  dx is their product with the kernel turned around; of the kernel only rows of
  F numbers move. dkernel is x^T times them.
  """
  kh, kw, channels, features = kernel.shape
  (top, bottom), (left, right) = padding
  around = (
    (kh - 1 - top, kh - 1 - bottom),
    (kw - 1 - left, kw - 1 - right),
  )
  written = columns(dy, (kh, kw), 1, around)
  written = written.reshape(-1, kh * kw * features)
  turned = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(channels, -1)
  dkernel = transposed_product(x.reshape(-1, channels), written)
  dkernel = dkernel.reshape(channels, kh, kw, features)[:, ::-1, ::-1]
  return (written @ turned.T).reshape(x.shape), dkernel.transpose(1, 2, 0, 3)


GRADIENT_FORMS = {
  "convolution": _by_convolution,
  "columns_of_x": _by_columns_of_x,
  "columns_of_dy": _by_columns_of_dy,
}
