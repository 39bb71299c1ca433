"""The rows of the mixture, in the order of their pictures."""

from __future__ import annotations

from recipes.glyph.data.rows.avatars import AvatarRow
from recipes.glyph.data.rows.clipart import ClipartRow
from recipes.glyph.data.rows.emoji import Emoji3DRow, EmojiRow
from recipes.glyph.data.rows.flags import FlagRow
from recipes.glyph.data.rows.furniture import FurnitureRow
from recipes.glyph.data.rows.interface import InterfaceRow
from recipes.glyph.data.rows.recoloured import RecolouredRow
from recipes.glyph.data.rows.row import Row

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
