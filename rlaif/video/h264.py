"""Prove from the headers of H.264 packets in which order their pictures play and where decoding may start.

A packet table alone proves neither: streams with intra refresh or open groups of pictures flag packets as key frames
that need earlier ones, a container's timestamps may contradict the order in which the decoder returns pictures, and a
frame that is coded as two fields may be two packets. The headers say all of it: only an IDR picture resets the
decoder, and the picture order count (ITU-T H.264, section 8.2.1) orders the pictures between two of them.

Everything unusual (fields, arbitrary slice order, parameter sets that change, lost pictures, header damage) is
`Unproven`, and the caller decodes the stream in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SLICE, IDR, SEI, SPS, PPS, AUD, FILLER = 1, 5, 6, 7, 8, 9, 12
PASSED_OVER = {SEI, AUD, FILLER}
HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
HEADER_BYTES = 40
"""A slice header's first fields take at most 5 x 63 + 16 bits, a fixed part of the parameter sets less."""


class Unproven(Exception):
    """The headers do not prove the order of the pictures."""


@dataclass(frozen=True)
class Picture:
    idr: bool
    order: int
    """Picture order count: pictures between two IDR pictures are shown in this order."""


@dataclass(frozen=True)
class _Sequence:
    frame_num_bits: int
    order_bits: int
    """Of the order count's low part; 0 if pictures are shown in the order in which they are coded (type 2)."""


class Pictures:
    """Reads packets in decoding order; `next` returns the picture of each. Raises Unproven on any doubt."""

    def __init__(self, extradata: bytes):
        self._length_size, sequences, parameters = _avc_configuration(extradata)
        self._known = {*sequences, *parameters}
        by_id = dict(_sequence(data) for data in sequences)
        try:
            self._sequences = {picture: by_id[sequence] for picture, sequence in map(_parameters, parameters)}
        except KeyError:
            raise Unproven("a parameter set is missing") from None
        self._frame_num: int | None = None
        self._order = self._count = 0

    def next(self, packet: memoryview) -> Picture:
        """Return the one picture of a packet."""
        header = None
        first_block = -1
        for unit in _units(packet, self._length_size):
            kind = unit[0] & 31
            if kind in (SLICE, IDR):
                block, header = self._same_picture(unit, header)
                if block <= first_block or (first_block < 0 and block):
                    raise Unproven("slices out of order")
                first_block = block
            elif kind in (SPS, PPS):
                if bytes(unit) not in self._known:
                    raise Unproven("parameter sets change")
            elif kind not in PASSED_OVER:
                raise Unproven(f"a unit of type {kind}")
        if header is None:
            raise Unproven("a packet without a picture")
        return self._picture(*header)

    def _same_picture(self, unit: memoryview, header: tuple | None) -> tuple[int, tuple]:
        bits = _Bits(unit[1:HEADER_BYTES])
        block, _, parameters = bits.golomb(), bits.golomb(), bits.golomb()
        sequence = self._sequences.get(parameters)
        if sequence is None:
            raise Unproven("an unknown parameter set")
        frame_num = bits.read(sequence.frame_num_bits)
        idr = unit[0] & 31 == IDR
        if idr:
            bits.golomb()
        low = bits.read(sequence.order_bits) if sequence.order_bits else None
        found = (idr, bool(unit[0] & 0x60), frame_num, low, sequence)
        if header not in (None, found):
            raise Unproven("two pictures in a packet")
        return block, found

    def _picture(self, idr: bool, reference: bool, frame_num: int, low: int | None, sequence: _Sequence) -> Picture:
        self._check_frame_num(idr, frame_num, 1 << sequence.frame_num_bits)
        if low is None:  # type 2: coded and shown in one order
            self._count = 0 if idr else self._count + 1
            order = self._count
        else:
            order = _order(low, 0 if idr else self._order, 1 << sequence.order_bits)
        if reference:
            self._frame_num, self._order = frame_num, order
        return Picture(idr, order)

    def _check_frame_num(self, idr: bool, frame_num: int, wrap: int) -> None:
        """Check that each picture counts one up from the last reference picture: a gap is a picture that was lost."""
        expected = 0 if idr else None if self._frame_num is None else (self._frame_num + 1) % wrap
        if frame_num != expected:
            raise Unproven("pictures are missing")


def _order(low: int, reference: int, wrap: int) -> int:
    """Return the order count nearest to that of the last reference picture which has these low bits."""
    base = reference - reference % wrap
    previous = reference % wrap
    if low < previous and previous - low >= wrap // 2:
        base += wrap
    elif low > previous and low - previous > wrap // 2:
        base -= wrap
    return base + low


def _avc_configuration(data: bytes) -> tuple[int, list[bytes], list[bytes]]:
    """Return the size of a unit's length and the sequence and picture parameter sets (ISO 14496-15, avcC)."""
    try:
        if data[0] != 1:
            raise Unproven("no avcC record")
        place, sets = 5, []
        for mask in (31, 255):
            count = data[place] & mask
            place += 1
            units = []
            for _ in range(count):
                size = int.from_bytes(data[place : place + 2], "big")
                units.append(bytes(data[place + 2 : place + 2 + size]))
                place += 2 + size
            sets.append(units)
        if not all(sets) or not all(sets[0]) or not all(sets[1]):
            raise Unproven("no parameter sets")
        return (data[4] & 3) + 1, sets[0], sets[1]
    except IndexError:
        raise Unproven("a cut avcC record") from None


def _units(packet: memoryview, length_size: int) -> Iterator[memoryview]:
    place, end = 0, len(packet)
    while place < end:
        start = place + length_size
        place = start + int.from_bytes(packet[place:start], "big")
        if place > end or place == start:
            raise Unproven("units do not fill their packet")
        yield packet[start:place]


def _sequence(data: bytes) -> tuple[int, _Sequence]:
    """Return the id of a sequence parameter set and what slice headers need of it."""
    profile, bits = data[1] if len(data) > 1 else 0, _Bits(data[4:])
    number = bits.golomb()
    if profile in HIGH_PROFILES:
        if bits.golomb() == 3 and bits.read(1):
            raise Unproven("separate colour planes")
        bits.golomb(), bits.golomb(), bits.read(1)
        if bits.read(1):
            raise Unproven("scaling matrices")
    frame_num_bits = bits.golomb() + 4
    kind = bits.golomb()
    if kind not in (0, 2):
        raise Unproven("order counts of type 1")
    order_bits = bits.golomb() + 4 if kind == 0 else 0
    bits.golomb()
    if bits.read(1):
        raise Unproven("gaps are allowed")
    bits.golomb(), bits.golomb()
    if not bits.read(1):
        raise Unproven("fields")
    return number, _Sequence(frame_num_bits, order_bits)


def _parameters(data: bytes) -> tuple[int, int]:
    """Return the ids of a picture parameter set and of its sequence parameter set."""
    bits = _Bits(data[1:HEADER_BYTES])
    number, sequence = bits.golomb(), bits.golomb()
    bits.read(1)
    if bits.read(1):
        raise Unproven("order counts per field")
    return number, sequence


class _Bits:
    """Bits of a unit, without the bytes that prevent start codes (0 0 3 stands for 0 0)."""

    def __init__(self, data: bytes | memoryview):
        plain = bytes(data).replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(plain, "big"), 8 * len(plain)

    def read(self, count: int) -> int:
        if count > self._left:
            raise Unproven("a cut header")
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1)

    def golomb(self) -> int:
        """An unsigned Exp-Golomb number."""
        rest = self._value & ((1 << self._left) - 1)
        zeros = self._left - rest.bit_length()
        if not rest or zeros > 31:
            raise Unproven("a cut header")
        self._left -= zeros
        return self.read(zeros + 1) - 1
