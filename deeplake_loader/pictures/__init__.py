"""Pictures of what a store holds, for people: thumbnails, strips of a video's frames, contact sheets, pictures in a
terminal, histograms. All of it is numpy and Pillow; nothing here needs torch.

>>> from deeplake_loader import pictures                                            # doctest: +SKIP
>>> rows = db.execute("SELECT photo, prompt FROM photos LIMIT 24")                  # doctest: +SKIP
>>> tiles = [pictures.Tile(pictures.thumbnail(row.photo), row.prompt) for row in rows]
>>> pictures.contact_sheet(tiles).save("sheet.png")                                 # doctest: +SKIP
"""

from __future__ import annotations

from deeplake_loader.pictures.blocks import half_blocks
from deeplake_loader.pictures.charts import bar_lines, histogram_picture
from deeplake_loader.pictures.sheets import Tile, contact_sheet
from deeplake_loader.pictures.thumbnails import strip, thumbnail

__all__ = ["Tile", "bar_lines", "contact_sheet", "half_blocks", "histogram_picture", "strip", "thumbnail"]
