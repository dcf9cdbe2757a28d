"""CRC-32C (Castagnoli), the checksum of every stored byte: computed by the processor's own instruction where it can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplake_loader.errors import InputError

from . import fallback
from .buffers import Pin
from .library import choice

if TYPE_CHECKING:
    from typing_extensions import Buffer


def crc32c(data: Buffer, value: int = 0) -> int:
    """The CRC-32C of ``data`` (0 to 2**32 - 1); ``value`` is the checksum of the bytes before it.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    >>> crc32c(b"56789", crc32c(b"1234")) == crc32c(b"123456789")
    True
    """
    if not 0 <= value <= 0xFFFFFFFF:
        raise InputError(f"value is {value}; a CRC-32C lies in 0..{0xFFFFFFFF}")
    chosen = choice()
    if chosen.library is None:
        return fallback.crc32c(data, value)
    if type(data) is bytes:  # half the cost of a call on a small item
        return int(chosen.library.dl_crc32c(chosen.level, value, data, len(data)))
    with Pin("data", data) as pin:
        return int(chosen.library.dl_crc32c(chosen.level, value, pin.address, pin.nbytes))


def crc32c_blocks(data: Buffer, block: int = 1 << 20, *, threads: int = 1) -> bytes:
    """The CRC-32C of each ``block`` bytes of ``data`` (the last may be shorter), little-endian, 4 bytes each.

    Empty data gives no block.

    >>> crc32c_blocks(b"123456789" * 2, 9).hex()
    '839206e3839206e3'
    """
    if block < 1:
        raise InputError(f"block is {block}; expected at least 1 byte")
    chosen = choice()
    if chosen.library is None:
        return fallback.crc32c_blocks(data, block)
    with Pin("data", data) as pin:
        block = min(block, max(pin.nbytes, 1))
        sums = bytearray(-(-pin.nbytes // block) * 4)
        with Pin("sums", sums, writable=True) as out:
            chosen.library.dl_crc32c_blocks(chosen.level, pin.address, pin.nbytes, block, out.address, threads)
    return bytes(sums)
