"""How network input of images may be laid out where one kernel makes it."""

from __future__ import annotations

from typing import NamedTuple


class PlaneLayout(NamedTuple):
    """What a representation can take instead of planes `[B, P, H, W]`; the default is nothing else.

    Example:
        >>> layout = PlaneLayout(multiple=8, paired=True)
        >>> layout.filled(12), layout.columns(96)
        (16, 98)
    """

    multiple: int = 1
    """Empty planes stand behind the others, up to a multiple of this: F of them in all."""
    paired: bool = False
    """Two columns stand side by side, as planes of one: `[B, 2F, H, pairs]`, of the columns -1 and 0, 1 and 2, and so
    on to one behind the image at least. Those outside it are empty."""

    def filled(self, num_planes: int) -> int:
        """F for so many planes."""
        return -(-num_planes // self.multiple) * self.multiple

    def columns(self, width: int) -> int:
        """Columns of a row in memory, those outside the image included."""
        return 2 * ((width + 1) // 2 + 1) if self.paired else width


PLAIN = PlaneLayout()
