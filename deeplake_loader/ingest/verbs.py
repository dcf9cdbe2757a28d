"""The verb of a Database that takes in other people's data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from deeplake_loader.errors import InputError

if TYPE_CHECKING:  # imported where it is used: a plain query needs none of it
    from deeplake_loader.ingest.report import IngestReport
    from deeplake_loader.ingest.target import Store


class IngestVerbs:
    """What Database inherits."""

    def ingest(
        self: Store,
        table: str,
        sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        schema: str | Mapping[str, str] | None = None,
        columns: Mapping[str, str] | Sequence[str] | None = None,
        key: str | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        dry_run: bool = False,
        workers: int = 2,
        progress: bool = False,
    ) -> IngestReport:
        """A report on the rows that the sources became; the table is made if it is not there.

        WebDataset tars stay where they lie: only an index is written, and reads go to the tar. A sample is a row, a
        member ``<key>.<extension>`` a column: images, videos and sounds by their extension, ``.npy`` as VECTOR or
        TENSOR, ``.txt``, ``.cls`` and the entries of ``.json`` as scalars, anything else as BLOB; pickles are never
        opened. A tar on a web server that gives no ranges, or by a url with a query (a signature; it is kept nowhere),
        is copied into the store, as are compressed tars, folders of media, tables (CSV, TSV, JSON, Parquet, Arrow),
        matrices (.npy, .fvecs, .fbin), Hugging Face datasets on disk, LeRobot datasets and text files.

        A LeRobot dataset (2.x or 3.x) becomes a row an episode: ``episode_index``, ``task``, ``length`` in frames,
        ``fps``, each numeric feature as a TENSOR (frames, ...), each camera as a VIDEO with ``<camera>.start`` and
        ``<camera>.end`` in seconds. Episodes in one video file share its bytes. Columns have the features' names.

        A folder of media is a row per file; one whose ``metadata.jsonl`` (or .csv, .parquet) names files by
        ``<column>_file_name``, as Hugging Face's do, is a row per line. What `export` wrote becomes the same table.

        Each source (or 1,000 files of a folder) is one commit. One that is in the table already is not read again, so
        that calling again after an interruption goes on, and calling twice adds nothing.

        Args:
            sources: paths, urls of tars (s3, gs, az, https), folders, with wildcards and ``{0000..0099}``.
            schema: the table to make, as CREATE TABLE or {column: type}; default: inferred, see
                `deeplake_loader.ingest.infer`.
            columns: {column: field}, or the fields wanted; a field is an extension (``seg.png``), an entry of a JSON
                member (``json.caption``), a table's column, or ``__key__``.
            key: the column that is the primary key; rows whose key is there already are not added again.
            on_error: ``raise`` at the first sample or source that cannot be stored, which leaves nothing of that
                source; ``skip`` leaves it out and lists it in the report. A damaged or cut tar is left out whole.
            dry_run: write nothing; the report shows the table.
            workers: sources read ahead, each on a thread.
            progress: show a progress bar.

        Raises:
            InputError, NotFoundError: no such sources, or nothing in them that fits the table.
            CorruptionError: a tar that is damaged or cut; names the place.

        >>> print(db.ingest("photos", "shards-{0000..0099}.tar", dry_run=True))         # doctest: +SKIP
        >>> db.ingest("photos", "shards-{0000..0099}.tar", on_error="skip").added       # doctest: +SKIP
        100000
        """
        from deeplake_loader.ingest.loading import Request, ingest

        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error={on_error!r} is none of raise, skip")
        if type(workers) is not int or not 1 <= workers <= 256:
            raise InputError(f"workers={workers!r}: expected a number from 1 to 256")
        if schema is not None and not isinstance(schema, str | Mapping):
            raise InputError(f"schema is CREATE TABLE text or a dict of types, got {type(schema).__name__}")
        request = Request(table, schema, columns, on_error, workers, progress, key)
        return ingest(self, request, sources, dry_run=dry_run)
