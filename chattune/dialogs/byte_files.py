"""Bytes that are made while they are read, as files: what `io.RawIOBase` leaves open for all of them."""

from __future__ import annotations

import io
import os


class ByteFile(io.RawIOBase):
    """A file to be read and sought in. A subclass says `seek`, from which `tell` follows, and `readinto` or `read`."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class Rewindable(ByteFile):
    """A file that is read from its beginning; ``seek(0)`` begins it anew, any other place is refused (`io.UnsupportedOperation`).

    `count`: bytes given since the beginning, for a subclass to keep. `rewind` makes it 0.
    """

    count = 0

    def rewind(self) -> None:
        """Begin anew."""
        raise NotImplementedError

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if (offset, whence) == (0, os.SEEK_SET):
            self.rewind()
        elif (offset, whence) != (0, os.SEEK_CUR):
            raise io.UnsupportedOperation("what is made while it is read can be read from the beginning only")
        return self.count
