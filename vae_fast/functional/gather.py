"""Batches of a data set in bytes."""

from __future__ import annotations

import torch

from vae_fast import reference
from vae_fast.backend import has_native, use_native
from vae_fast.noise import check_key, new_key
from vae_fast.ops.autograd import is_batched
from vae_fast.types import GATHER_MODES, GatherMode

if has_native("cpu"):
    from vae_fast.ops import gather as _gather


def gather_batch(
    data: torch.Tensor,
    index: torch.Tensor,
    *,
    mode: GatherMode = "bytes",
    noise_key: torch.Tensor | None = None,
    first_row: int | torch.Tensor = 0,
) -> torch.Tensor:
    """A batch of a data set of bytes: the rows of ``data`` at ``index``.

    ``"binarize"`` draws each pixel from Bernoulli(x / 255) (dynamic binarisation, Salakhutdinov &
    Murray 2008). The draws depend only on the noise key and a pixel's position: pixel c of the
    batch's row r takes word (first_row + r) * columns + c of the key's noise. Every backend,
    instruction set, number of threads and device gives the same bits.

    Args:
        data: (N, ...) uint8 (0..255 stands for x / 255) or bool, resident on the device.
        index: (B,) int64 on the same device, each in [0, N).
        mode: "bytes" gives the rows unchanged; "scale" float32, x / 255 correctly rounded (0 or 1
            for bool); "binarize" bool (bool data are unchanged).
        noise_key: for "binarize": int64 tensor of 2 elements (``vae_fast.noise.new_key``); drawn
            from torch's generator when None.
        first_row: for "binarize": the position of the batch's first row in a longer sequence with
            one key, such as an epoch. The draws then do not depend on the division into batches. A
            number, or an int64 tensor of one element on the device, which a captured CUDA graph
            reads at each replay.

    Returns:
        (B, ...), contiguous; uint8 or bool as data is, float32, or bool.

    Raises:
        IndexError: an index is outside [0, N); raised before anything is read. On a GPU this check
            would make the host wait, so the kernel traps, which CUDA reports at the next
            synchronisation.
        TypeError, ValueError: dtypes, shapes or devices that don't fit.
    """
    if mode not in GATHER_MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, GATHER_MODES))}, got {mode!r}")
    if not isinstance(data, torch.Tensor) or data.dtype not in (torch.uint8, torch.bool):
        found = data.dtype if isinstance(data, torch.Tensor) else type(data).__name__
        raise TypeError(f"data must be a uint8 (0..255) or bool tensor, got {found}")
    if not isinstance(index, torch.Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        given = (
            f"{index.dtype} of shape {tuple(index.shape)}"
            if isinstance(index, torch.Tensor)
            else type(index).__name__
        )
        raise TypeError(f"index must be an int64 tensor (B,), got {given}")
    if data.dim() < 1 or index.device != data.device:
        raise ValueError(
            f"data must be (N, ...) on the index's device, got {tuple(data.shape)} on "
            f"{data.device} and an index on {index.device}"
        )
    if isinstance(first_row, torch.Tensor):
        if first_row.dtype != torch.int64 or first_row.numel() != 1:
            raise TypeError(
                "first_row must be a whole number or an int64 tensor of one element, got "
                f"{first_row.dtype} of shape {tuple(first_row.shape)}"
            )
        if first_row.device != data.device:
            raise ValueError(
                f"first_row is on {first_row.device}, data on {data.device}: move them to one device"
            )
        _check_position(first_row)
    else:
        if not torch.compiler.is_compiling() and not hasattr(first_row, "__index__"):
            raise TypeError(
                "first_row must be a whole number or an int64 tensor of one element, got "
                f"{type(first_row).__name__}"
            )
        if not 0 <= first_row < 2**63:
            raise ValueError(f"first_row is a position in a sequence, from 0 on; got {first_row}")
        if torch.compiler.is_compiling():  # otherwise the op would be compiled for each number
            first_row = torch.full((), first_row, dtype=torch.int64, device=data.device)
    if data.dtype == torch.bool and mode == "binarize":
        mode = "bytes"
    if noise_key is not None:
        noise_key = check_key(noise_key, data.device, "data")
    elif mode == "binarize":
        noise_key = new_key(data.device)
    if data.dtype == torch.bool:
        # Bytes of a file or a mask may differ from 0 and 1; only a comparison makes them bools.
        rows = gather_batch(data.view(torch.uint8), index, noise_key=noise_key).ne(0)
        return rows.float() if mode == "scale" else rows
    native = use_native(data.device.type)
    if native and not data.is_contiguous():  # a view of the data: only its rows are copied
        data, index = data.index_select(0, index), torch.arange(len(index), device=data.device)
        data = data.contiguous()
    if native:
        code = GATHER_MODES.index(mode)
        try:
            return _gather.gather_batch(data, index.contiguous(), code, noise_key, first_row)
        except RuntimeError:
            _check_index(index, len(data))
            raise
    if data.device.type == "cpu" and not torch.compiler.is_compiling() and not is_batched(index):
        _check_index(index, len(data))
    return reference.gather_batch(data, index, mode, noise_key, first_row)


def _check_position(first_row: torch.Tensor) -> None:
    """Check ``first_row``, if the check neither waits for a device nor breaks a graph.

    The check is an op, so that tracers can record it.
    """
    if first_row.device.type != "cpu" or torch.compiler.is_compiling() or is_batched(first_row):
        return
    try:
        torch._assert_async((first_row >= 0).all(), "first_row is negative")
    except RuntimeError:
        raise ValueError(
            f"first_row is a position in a sequence, from 0 on; got {first_row.item()}"
        ) from None


def _check_index(index: torch.Tensor, samples: int) -> None:
    """Raise IndexError for the first index outside [0, samples)."""
    bad = ((index < 0) | (index >= samples)).nonzero()
    if len(bad):
        position = int(bad[0])
        raise IndexError(
            f"index {int(index[position])}, at position {position} of {len(index)}, is outside the data, "
            f"which has samples 0 to {samples - 1}"
        )
