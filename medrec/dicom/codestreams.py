"""Compressed frames without what is no image: comments, application data, and whatever stands behind their end.

JPEG and JPEG-LS (ITU-T T.81 B.1, T.87) and JPEG 2000 (T.800 A.4 to A.6) carry free text in marker segments; software
writes names there. The image's own bytes are not touched. Refuses (ValueError) a codestream that it cannot follow.
"""

COMMENT, ADOBE, START_OF_SCAN, END = 0xFE, 0xEE, 0xDA, 0xD9
APPLICATION = range(0xE0, 0xF0)
ADOBE_BYTES = 14  # it tells how colours were turned, in numbers
RESTARTS = range(0xD0, 0xD8)
JPEG, JPEG2000 = b"\xff\xd8", b"\xff\x4f"
J2K_COMMENT, START_OF_TILE, START_OF_DATA, END_OF_CODESTREAM = 0x64, 0x90, 0x93, b"\xff\xd9"


def bare(frame: bytes) -> bytes:
    """A frame's codestream without text; frames of other kinds as they are.

    Raises ValueError when it cannot be followed to its end.
    """
    if frame.startswith(JPEG):
        return _jpeg(frame)
    if frame.startswith(JPEG2000):
        return _jpeg2000(frame)
    return frame


def _jpeg(frame: bytes) -> bytes:
    kept, at = bytearray(JPEG), len(JPEG)
    while (marker := _marker(frame, at)) != END:
        end = at + 2 + _length(frame, at)
        if (marker not in APPLICATION and marker != COMMENT) or (marker == ADOBE and end - at - 2 == ADOBE_BYTES):
            kept += frame[at:end]
        at = end
        if marker == START_OF_SCAN:
            end = _end_of_scan(frame, at)
            kept += frame[at:end]
            at = end
    return bytes(kept + frame[at : at + 2])


def _end_of_scan(frame: bytes, at: int) -> int:
    """Where the next marker stands: within coded data FF is followed by 00 (or, in JPEG-LS, by less than 80)."""
    while (at := frame.find(b"\xff", at)) >= 0 and at + 1 < len(frame):
        if frame[at + 1] >= 0x80 and frame[at + 1] not in RESTARTS and frame[at + 1] != 0xFF:
            return at
        at += 1
    raise ValueError("a codestream without an end")


def _jpeg2000(frame: bytes) -> bytes:
    kept, at = bytearray(JPEG2000), len(JPEG2000)
    while (marker := _marker(frame, at)) != START_OF_TILE:
        end = at + 2 + _length(frame, at)
        kept += frame[at:end] if marker != J2K_COMMENT else b""
        at = end
    start = at
    while frame[at : at + 2] != END_OF_CODESTREAM:
        length = int.from_bytes(frame[at + 6 : at + 10], "big")  # Psot; 0 in the last: up to the end
        _no_comment(frame, at)
        at = at + length if length >= 14 else frame.rfind(END_OF_CODESTREAM)
        if not start < at < len(frame):
            raise ValueError("a codestream without an end")
    return bytes(kept + frame[start : at + 2])


def _no_comment(frame: bytes, at: int) -> None:
    """A comment in the header of a part cannot be taken out without counting anew."""
    while (marker := _marker(frame, at)) != START_OF_DATA:
        if marker == J2K_COMMENT:
            raise ValueError("a comment within a tile")
        at += 2 + _length(frame, at)


def _marker(frame: bytes, at: int) -> int:
    if len(frame) < at + 2 or frame[at] != 0xFF:
        raise ValueError("a codestream that cannot be followed")
    return frame[at + 1]


def _length(frame: bytes, at: int) -> int:
    length = int.from_bytes(frame[at + 2 : at + 4], "big")
    if length < 2 or at + 2 + length > len(frame):
        raise ValueError("a codestream that cannot be followed")
    return length
