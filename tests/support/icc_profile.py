"""ICC profiles written byte by byte, because littleCMS through Pillow makes only sRGB, XYZ and Lab."""

import struct

import numpy as np


def matrix_profile(to_xyz_d50, gamma: float, space: bytes = b"RGB ") -> bytes:
    """A display profile of three columns (the XYZ of red, green and blue under D50) and a power curve."""
    tags = {b"wtpt": _xyz((0.9642, 1.0, 0.8249)), b"desc": _text(b"test")}
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, column in zip((b"r", b"g", b"b"), np.transpose(to_xyz_d50), strict=True):
            tags[name + b"XYZ"], tags[name + b"TRC"] = _xyz(column), curve
    offset, table, data = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI4s4s4s12s4s", offset + len(data), b"lcms", 0x02400000, b"mntr", space, b"XYZ ",
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
