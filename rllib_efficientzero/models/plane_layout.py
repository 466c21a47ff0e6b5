"""Alternative memory layouts for network input of images, where a kernel makes it."""

from __future__ import annotations

from typing import NamedTuple


class PlaneLayout(NamedTuple):
    """A layout that a representation accepts instead of planes `[B, P, H, W]`; the default is that of planes.

    Example:
        >>> layout = PlaneLayout(multiple=8, paired=True)
        >>> layout.filled(12), layout.columns(96)
        (16, 98)
    """

    multiple: int = 1
    """The planes are padded with empty ones to a multiple of this: F planes in all."""
    paired: bool = False
    """Two neighbouring columns are stored as the planes of one: `[B, 2F, H, pairs]`, with the columns -1 and 0, 1 and
    2, and so on, up to at least one column past the image. Columns outside the image are empty."""

    def filled(self, num_planes: int) -> int:
        """F, the number of planes after padding."""
        return -(-num_planes // self.multiple) * self.multiple

    def columns(self, width: int) -> int:
        """Columns per row in memory, including those outside the image."""
        return 2 * ((width + 1) // 2 + 1) if self.paired else width


PLAIN = PlaneLayout()
