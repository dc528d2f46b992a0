"""Random damage to files, for fuzz tests, and the memory of the process that reads them."""

import pathlib
import random


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Overwrites, inserts, removes or repeats a few bytes, half of the time in the header."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 2, 4, 16, 64))):
        reach = draw.choice((64, 512, len(data)))
        at = draw.randrange(max(1, min(reach, len(data))))
        kind = draw.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            data[at : at + 4] = draw.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\1\0\0")
            )
        elif kind == 2:
            del data[at : at + draw.choice((1, 7, 188, 1000))]
        elif kind == 3:
            data[at:at] = draw.randbytes(draw.choice((1, 4, 100)))
        elif kind == 4:
            data[at:at] = data[at : at + draw.choice((16, 500))]
        elif draw.random() < 0.1:
            del data[at:]
    return bytes(data)


def resident(process) -> int:
    """The largest memory of a process so far, in bytes."""
    text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(text.partition("VmHWM:")[2].split()[0])
