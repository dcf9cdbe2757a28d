"""The verb of a Database that gives its rows to other programs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from deeplake_loader.errors import InputError

if TYPE_CHECKING:  # imported where it is used: a plain query needs none of it
    from deeplake_loader.exporting.report import ExportReport

_FORMS = ("webdataset", "parquet", "folder")


class ExportVerbs:
    """What Database inherits."""

    def export(
        self,
        query: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        to: str | os.PathLike[str],
        format: Literal["webdataset", "parquet", "folder"] = "webdataset",
        shard_bytes: int = 256 << 20,
        blobs: Literal["inline", "reference"] = "inline",
    ) -> ExportReport:
        """A report on the files that the query's rows became, exact as of one commit; blobs are copied byte for byte.

        The folder is there whole or not at all. `Database.ingest` makes the same table of it: the types of the columns
        are written beside the rows.

        Args:
            query: a SELECT, or a table's name for all of it. Its column ``__key__`` or ``key`` names the samples; else
                their numbers do.
            params: the statement's values.
            to: a new or empty folder, or a url that fsspec writes to.
            format: ``webdataset``: tars of ``<key>.<column>.<extension>`` per blob (``<key>.jpg`` for a column
                ``jpg``), ``<key>.<column>.npy`` per vector, ``<key>.txt`` or the like for a scalar column of such a
                name, ``<key>.json`` with the other scalars. ``parquet``: one column each, vectors as fixed-size lists.
                ``folder``: a file per blob and ``metadata.jsonl``, as Hugging Face's imagefolder reads it.
            shard_bytes: a tar or Parquet file ends before it grows beyond this.
            blobs: in Parquet, ``inline`` for their bytes, ``reference`` for struct(url, offset, length, key).

        Raises:
            InputError: no SELECT, a folder that holds something, two rows with one key.
            CorruptionError: a blob's bytes are damaged; nothing is left of the export.

        >>> db.export("SELECT key, jpg, caption FROM photos WHERE width >= %s", [512], to="out")    # doctest: +SKIP
        """
        from deeplake_loader.exporting.run import Request, export

        if format not in _FORMS:
            raise InputError(f"format={format!r} is none of {', '.join(_FORMS)}")
        if blobs not in ("inline", "reference") or (blobs == "reference" and format != "parquet"):
            raise InputError(f"blobs={blobs!r} with format={format!r}: expected 'inline', or 'reference' with Parquet")
        if type(shard_bytes) is not int or shard_bytes < 1:
            raise InputError(f"shard_bytes={shard_bytes!r}: expected a number of bytes")
        return export(self, Request(query, params, os.fspath(to), format, shard_bytes, blobs))
