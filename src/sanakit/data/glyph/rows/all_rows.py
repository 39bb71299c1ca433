"""The rows of the mixture, in the order of their pictures."""

from __future__ import annotations

from sanakit.data.glyph.rows.avatars import AvatarRow
from sanakit.data.glyph.rows.clipart import ClipartRow
from sanakit.data.glyph.rows.emoji import Emoji3DRow, EmojiRow
from sanakit.data.glyph.rows.flags import FlagRow
from sanakit.data.glyph.rows.furniture import FurnitureRow
from sanakit.data.glyph.rows.interface import InterfaceRow
from sanakit.data.glyph.rows.recoloured import RecolouredRow
from sanakit.data.glyph.rows.row import Row

ROWS: tuple[Row, ...] = (
    Emoji3DRow(),
    EmojiRow(),
    InterfaceRow(),
    FlagRow(),
    ClipartRow(),
    FurnitureRow(),
    AvatarRow(),
    RecolouredRow(),
)
