"""ICC profiles written byte by byte, because littleCMS through Pillow makes only sRGB, XYZ and Lab."""

import struct

import numpy as np


def matrix_profile(to_xyz_d50, gamma: float, space: bytes = b"RGB ") -> bytes:
    """A display's profile: the XYZ of red, green and blue under D50 as columns, and a power curve."""
    tags = {}
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, column in zip((b"r", b"g", b"b"), np.transpose(to_xyz_d50), strict=True):
            tags[name + b"XYZ"], tags[name + b"TRC"] = _xyz(column), curve
    return _profile(b"mntr", space, b"XYZ ", tags)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"wtpt": _xyz((0.9642, 1.0, 0.8249)), b"desc": _text(b"test")} | tags
    offset, table, data = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI4s4s4s12s4s", offset + len(data), b"lcms", 0x02400000, kind, space, connection,
                         bytes(12), b"acsp")  # fmt: skip
    header += bytes(68 - len(header)) + struct.pack(">3i", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + table + data


def primaries_to_xyz_d50(white, red, green, blue) -> np.ndarray:
    """The matrix from linear RGB to XYZ, adapted from its white to D50 (Bradford); all are (x, y)."""

    def xyz(x, y):
        return np.array([x / y, 1, (1 - x - y) / y])

    columns = np.array([xyz(*c) for c in (red, green, blue)]).T
    columns = columns * np.linalg.solve(columns, xyz(*white))
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    gains = (cone @ [0.9642, 1.0, 0.8249]) / (cone @ xyz(*white))
    return np.linalg.inv(cone) @ np.diag(gains) @ cone @ columns


def _xyz(numbers) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * float(n)) for n in numbers))


def _text(text: bytes) -> bytes:
    return b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(1 + 4 + 4 + 2 + 1 + 67)


def cmyk_profile(corners) -> bytes:
    """A printer's profile with a table of two points per ink: `corners` (2, 2, 2, 2, 3) are Lab values."""
    lab = np.asarray(corners, float).reshape(-1, 3)
    grid = np.clip(np.round(np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], 1)), 0, 255)
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity
    table += ramp * 4 + grid.astype(np.uint8).tobytes() + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})
