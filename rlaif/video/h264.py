"""Prove from the headers of H.264 packets in which order their pictures play and where decoding may start.

A packet table alone proves neither: streams with intra refresh or open groups of pictures flag packets as key frames
that need earlier ones, a container's timestamps may contradict the order in which the decoder returns pictures, and a
frame that is coded as two fields may be two packets. The headers say all of it: only an IDR picture resets the
decoder, and the picture order count (ITU-T H.264, section 8.2.1) orders the pictures between two of them.

Everything unusual (fields, arbitrary slice order, parameter sets that change, lost pictures, header damage) raises
`UnprovenError`, and the caller decodes the stream in order. Sections named below are those of ITU-T H.264.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# Types of units (table 7-1) and the bits of a unit's first byte (7.3.1).
SLICE, IDR, SEI, SPS, PPS, AUD, FILLER = 1, 5, 6, 7, 8, 9, 12
PASSED_OVER = {SEI, AUD, FILLER}
TYPE_BITS = 0x1F
REFERENCE_BITS = 0x60
HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
"""Profiles whose sequence parameter sets describe the colour format (7.3.2.1.1)."""
HEADER_BYTES = 40
"""Bytes of a unit that are looked at. The fields that are read are a few bytes long; a header that would need more than
this (a number may take 63 bits) counts as cut."""
MOST_ZEROS = 31
"""Leading zeros of an Exp-Golomb number (9.1): the largest, 2**32 - 2, has 31."""
# Bits that hold the number of parameter sets in an avcC record: five of one byte, and a whole byte (ISO 14496-15,
# AVCDecoderConfigurationRecord).
SEQUENCE_COUNT_BITS = 31
PICTURE_COUNT_BITS = 255


class UnprovenError(Exception):
    """The headers do not prove the order of the pictures."""


@dataclass(frozen=True)
class Picture:
    """What the headers say about the picture of a packet."""

    idr: bool
    order: int
    """Picture order count: pictures between two IDR pictures are shown in this order."""


@dataclass(frozen=True)
class _Sequence:
    """What slice headers need of a sequence parameter set."""

    frame_num_bits: int
    order_bits: int
    """Bits of the order count's low part; 0 if pictures are shown in the order in which they are coded (type 2)."""


class _Header(NamedTuple):
    """What all slices of a picture have in common."""

    idr: bool
    reference: bool
    """Later pictures may be predicted from this one."""
    frame_num: int
    order_low: int | None
    """Low bits of the order count; None for order counts of type 2."""
    sequence: _Sequence


class Pictures:
    """A reader of packets in decoding order; `next` returns the picture of each. Raises UnprovenError on any doubt."""

    def __init__(self, extradata: bytes):
        self._length_size, sequences, parameters = _avc_configuration(extradata)
        self._known = {*sequences, *parameters}
        by_id = dict(_sequence(data) for data in sequences)
        self._sequences: dict[int, _Sequence] = {}
        for data in parameters:
            picture_id, sequence_id = _parameters(data)
            if sequence_id not in by_id:
                raise UnprovenError("a parameter set is missing")
            self._sequences[picture_id] = by_id[sequence_id]
        self._frame_num: int | None = None
        self._order = 0
        self._count = 0

    def next(self, packet: memoryview) -> Picture:
        """Return the one picture of a packet."""
        header = None
        last_block = -1
        for unit in _units(packet, self._length_size):
            kind = unit[0] & TYPE_BITS
            if kind in (SLICE, IDR):
                block, slice_header = self._slice_header(unit)
                if header not in (None, slice_header):
                    raise UnprovenError("two pictures in a packet")
                header = slice_header
                # The first slice begins at macroblock 0 and each further one behind the last: no slice order but this.
                if block <= last_block or (last_block < 0 and block):
                    raise UnprovenError("slices out of order")
                last_block = block
            elif kind in (SPS, PPS):
                if bytes(unit) not in self._known:
                    raise UnprovenError("parameter sets change")
            elif kind not in PASSED_OVER:
                raise UnprovenError(f"a unit of type {kind}")
        if header is None:
            raise UnprovenError("a packet without a picture")
        return self._picture(header)

    def _slice_header(self, unit: memoryview) -> tuple[int, _Header]:
        """Return a slice's first macroblock and its header (7.3.3)."""
        bits = _Bits(unit[1:HEADER_BYTES])
        block = bits.golomb()
        bits.golomb()  # the slice's type
        parameters = bits.golomb()
        sequence = self._sequences.get(parameters)
        if sequence is None:
            raise UnprovenError("an unknown parameter set")
        frame_num = bits.read(sequence.frame_num_bits)
        idr = unit[0] & TYPE_BITS == IDR
        if idr:
            bits.golomb()  # the number of the IDR picture
        order_low = bits.read(sequence.order_bits) if sequence.order_bits else None
        reference = bool(unit[0] & REFERENCE_BITS)
        return block, _Header(idr, reference, frame_num, order_low, sequence)

    def _picture(self, header: _Header) -> Picture:
        wrap = 1 << header.sequence.frame_num_bits
        self._check_frame_num(header.idr, header.frame_num, wrap)
        if header.order_low is None:
            # Type 2 (8.2.1.3): pictures are coded and shown in one order.
            self._count = 0 if header.idr else self._count + 1
            order = self._count
        else:
            previous = 0 if header.idr else self._order
            order = _order(header.order_low, previous, 1 << header.sequence.order_bits)
        # Both counts go on from the last reference picture, not from the last picture (8.2.1.1, 7.4.3).
        if header.reference:
            self._frame_num = header.frame_num
            self._order = order
        return Picture(header.idr, order)

    def _check_frame_num(self, idr: bool, frame_num: int, wrap: int) -> None:
        """Check that each picture counts one up from the last reference picture: a gap is a picture that was lost."""
        expected: int | None = None
        if idr:
            expected = 0
        elif self._frame_num is not None:
            expected = (self._frame_num + 1) % wrap
        if frame_num != expected:
            raise UnprovenError("pictures are missing")


def _order(low: int, reference: int, wrap: int) -> int:
    """Return the order count nearest to that of the last reference picture which has these low bits (8.2.1.1)."""
    base = reference - reference % wrap
    previous = reference % wrap
    # The two bounds differ at exactly half a wrap, as in equation 8-3.
    if low < previous and previous - low >= wrap // 2:
        base += wrap
    elif low > previous and low - previous > wrap // 2:
        base -= wrap
    return base + low


def _avc_configuration(data: bytes) -> tuple[int, list[bytes], list[bytes]]:
    """Return the size of a unit's length and the sequence and picture parameter sets (ISO 14496-15, avcC)."""
    try:
        if data[0] != 1:
            raise UnprovenError("no avcC record")
        length_size = (data[4] & 3) + 1
        sequences, place = _parameter_sets(data, 5, SEQUENCE_COUNT_BITS)
        parameters, _ = _parameter_sets(data, place, PICTURE_COUNT_BITS)
    except IndexError:
        raise UnprovenError("a cut avcC record") from None
    if not sequences or not parameters or not all(sequences) or not all(parameters):
        raise UnprovenError("no parameter sets")
    return length_size, sequences, parameters


def _parameter_sets(data: bytes, place: int, count_bits: int) -> tuple[list[bytes], int]:
    """Return the parameter sets that begin with their number at `place`, and the place behind them."""
    count = data[place] & count_bits
    place += 1
    units = []
    for _ in range(count):
        start = place + 2
        size = int.from_bytes(data[place:start], "big")
        place = start + size
        units.append(bytes(data[start:place]))
    return units, place


def _units(packet: memoryview, length_size: int) -> Iterator[memoryview]:
    """Yield the units of a packet, each of which follows its length (ISO 14496-15)."""
    place = 0
    end = len(packet)
    while place < end:
        start = place + length_size
        place = start + int.from_bytes(packet[place:start], "big")
        if place > end or place == start:
            raise UnprovenError("units do not fill their packet")
        yield packet[start:place]


def _sequence(data: bytes) -> tuple[int, _Sequence]:
    """Return the id of a sequence parameter set and what slice headers need of it (7.3.2.1.1)."""
    profile = data[1] if len(data) > 1 else 0
    bits = _Bits(data[4:])
    number = bits.golomb()
    if profile in HIGH_PROFILES:
        _require_plain_colour(bits)
    frame_num_bits = bits.golomb() + 4
    order_type = bits.golomb()
    if order_type not in (0, 2):
        raise UnprovenError("order counts of type 1")
    order_bits = bits.golomb() + 4 if order_type == 0 else 0
    bits.golomb()  # the number of reference frames
    if bits.read(1):
        raise UnprovenError("gaps are allowed")
    bits.golomb()  # the width
    bits.golomb()  # the height
    frames_only = bits.read(1)
    if not frames_only:
        raise UnprovenError("fields")
    return number, _Sequence(frame_num_bits, order_bits)


def _require_plain_colour(bits: _Bits) -> None:
    """Read the colour format of a sequence parameter set."""
    colour_format = bits.golomb()
    if colour_format == 3 and bits.read(1):
        raise UnprovenError("separate colour planes")
    bits.golomb()  # the depth of brightness
    bits.golomb()  # the depth of colour
    bits.read(1)  # whether some blocks are lossless
    if bits.read(1):
        raise UnprovenError("scaling matrices")


def _parameters(data: bytes) -> tuple[int, int]:
    """Return the ids of a picture parameter set and of its sequence parameter set (7.3.2.2)."""
    bits = _Bits(data[1:HEADER_BYTES])
    number = bits.golomb()
    sequence = bits.golomb()
    bits.read(1)  # the entropy coder
    if bits.read(1):
        raise UnprovenError("order counts per field")
    return number, sequence


class _Bits:
    """Bits of a unit, without the bytes that prevent start codes (7.4.1: 0 0 3 stands for 0 0)."""

    def __init__(self, data: bytes | memoryview):
        plain = bytes(data).replace(b"\0\0\3", b"\0\0")
        self._value = int.from_bytes(plain, "big")
        self._remaining = 8 * len(plain)

    def read(self, count: int) -> int:
        """Return the next `count` bits as a number."""
        if count > self._remaining:
            raise UnprovenError("a cut header")
        self._remaining -= count
        return (self._value >> self._remaining) & ((1 << count) - 1)

    def golomb(self) -> int:
        """Return the next unsigned Exp-Golomb number (9.1): n zeros, then n + 1 bits that hold the number plus one."""
        rest = self._value & ((1 << self._remaining) - 1)
        zeros = self._remaining - rest.bit_length()
        if not rest or zeros > MOST_ZEROS:
            raise UnprovenError("a cut header")
        self._remaining -= zeros
        return self.read(zeros + 1) - 1
