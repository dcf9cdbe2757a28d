"""The facade: `connect` gives a Database, whose verbs run SQL, insert in bulk, search and stream.

What differs between the two kinds of catalog lies behind `Parts`, which a function per catalog puts together.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from deeplake_loader.batches import batches, known_length
from deeplake_loader.branches import branches_of
from deeplake_loader.care.verbs import CareVerbs
from deeplake_loader.catalog import Catalog, Dialect, Location
from deeplake_loader.checkout import BranchVerbs
from deeplake_loader.errors import DecodeError, InputError, NotFoundError, StoreError
from deeplake_loader.exporting.verbs import ExportVerbs
from deeplake_loader.indexes import IndexVerbs
from deeplake_loader.ingest.verbs import IngestVerbs
from deeplake_loader.inventory import InventoryVerbs
from deeplake_loader.media import MediaVerbs
from deeplake_loader.merging.verbs import MergingVerbs
from deeplake_loader.progress import progress_bar
from deeplake_loader.quarantine import QuarantineVerbs
from deeplake_loader.rows import Place, RowSet, all_stored
from deeplake_loader.search.verbs import SearchVerbs
from deeplake_loader.sql.plan import Plan
from deeplake_loader.sqlite_catalog import SqliteCatalog
from deeplake_loader.storage import Access, named
from deeplake_loader.store import POINTER, Root
from deeplake_loader.types import Table
from deeplake_loader.warming import StorageVerbs
from deeplake_loader.writing import Validate

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    import torch
    from sqlalchemy import Engine

    from deeplake_loader.codecs import MediaInfo
    from deeplake_loader.inspection import Description
    from deeplake_loader.parts import Parts
    from deeplake_loader.rows import Source
    from deeplake_loader.stream import Stream

_VECTOR_BATCH, _BLOB_BATCH = 65_536, 1_024
"""Rows per step of a bulk insert: 200 MB of 768 float32, or 22 MB of 22 KB images. More images a step took half as long
again, because the disk idles until the first step is encoded."""


def connect(
    url: str | os.PathLike[str],
    *,
    storage: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_bytes: int | None = None,
    catalog: Dialect | None = None,
    branch: str = "main",
    create: bool = True,
    read_only: bool = False,
    timeout_s: float = 30.0,
) -> Database:
    """A Database: a handle on the store at ``url``, made there if it does not exist.

    A store is a catalog, which holds the rows and their history, and a storage, where the bytes of images, videos and
    (in a folder) vectors lie.

    Args:
        url: where the catalog is: a folder's path, or ``deeplake://org/name`` for the folder
            ``$DEEPLAKE_HOME/org/name`` (default ``~/.deeplake``), or ``postgresql://user:password@host/database`` for
            a catalog that a team shares (``?schema=team`` puts main into another schema than ``public``). A url or
            folder that `Database.publish` was given (``https://``, ``s3://`` and so on) opens what was published there,
            read-only.
        storage: where shards and vectors lie: ``s3://bucket/prefix`` (or gs://, az:// or any url that fsspec reaches),
            or a folder. Given when a store is made, and remembered; a store in a folder keeps them there by default,
            one at a ``postgresql://`` URL needs it.
        storage_options: of fsspec's filesystem, such as ``endpoint_url``, ``key`` and ``secret``; never stored. By
            default the environment has them.
        cache_dir: where copies of remote objects are kept; by default ``$DEEPLAKE_CACHE`` or
            ``~/.cache/deeplake_loader``.
        cache_bytes: what they may take; by default ``$DEEPLAKE_CACHE_BYTES`` or 20 GB, and 0 keeps none.
        catalog: of a new store in a folder: ``sqlite`` (default), or ``postgres`` for a PostgreSQL server of its own in
            the folder, started and stopped by those who use it; an old store's is found out.
        branch: the branch that the handle reads and writes; see `Database.branch` for making one.
        create: make the store when there is none; False raises NotFoundError instead.
        read_only: refuse every write; what a role of the database that may only SELECT needs.
        timeout_s: seconds to wait for another writer before LockedError, and for a connection.

    Raises:
        InputError: a URL that names no store, or storage that is not the store's. NotFoundError: no store there and
            ``create=False``, or no such branch.
        StoreError: the folder, server or storage cannot be reached or opened, or the store was written by a later
            version. No error shows a password.

    >>> import tempfile
    >>> db = connect(tempfile.mkdtemp())
    >>> _ = db.execute("CREATE TABLE notes (id BIGINT PRIMARY KEY, text TEXT)")
    >>> db.execute("INSERT INTO notes (text) VALUES (%s) RETURNING id", ["first"]).scalar()
    1
    >>> team = connect("postgresql://ann@sql.example.com/team", storage="s3://bucket/team")     # doctest: +SKIP
    >>> trial = connect("./trial", catalog="postgres")                                          # doctest: +SKIP
    """
    access = Access(storage_options, cache_dir, cache_bytes)
    opened = _open_catalog(url, storage, access, catalog, create=create, read_only=read_only, timeout_s=timeout_s)
    if storage_options or opened.root.storage is not None or opened.root.data is not None:
        _check_storage(opened, access)
    return _handle(opened, branch)


def _check_storage(catalog: Catalog, access: Access) -> None:
    """Makes the storage the store's own; options that are for none are a mistake."""
    from deeplake_loader.ownership import check_options, claim

    try:
        check_options(catalog.root, access)
        if not catalog.read_only:
            claim(catalog)
    except BaseException:
        catalog.close()
        raise


def reopen(location: Location, *, branch: str = "main", read_only: bool = False, timeout_s: float = 30.0) -> Database:
    """A further handle on the store whose catalog is at ``location``, with options as of `connect`."""
    return _handle(location.open(read_only=read_only, timeout_s=timeout_s), branch)


def _handle(opened: Catalog, branch: str) -> Database:
    try:
        database = Database(opened)
    except BaseException:
        opened.close()
        raise
    if branch != "main":
        try:
            database.checkout(branch)
        except BaseException:
            database.close()
            raise
    return database


def _open_catalog(
    url: str | os.PathLike[str], storage: str | os.PathLike[str] | None, access: Access, kind: Dialect | None, *,
    create: bool, read_only: bool, timeout_s: float,
) -> Catalog:  # fmt: skip
    if kind not in (None, *get_args(Dialect)):
        raise InputError(f"catalog={kind!r} is none of {', '.join(get_args(Dialect))}")
    if isinstance(url, str) and url.startswith(("postgresql://", "postgres://")):
        from deeplake_loader.postgres.catalog import PostgresCatalog

        if kind == "sqlite":
            raise InputError("the URL of a PostgreSQL database has no SQLite catalog; leave catalog= out")
        return PostgresCatalog.open(
            url, storage=storage, access=access, create=create, read_only=read_only, timeout_s=timeout_s
        )
    published = _published(url)
    if published is not None:
        return _open_published(published, storage, access, kind, timeout_s)
    folder, place = locate_store(url), None if storage is None else named(storage)
    if _is_embedded_postgres(folder, kind):
        from deeplake_loader.postgres.embedded import EmbeddedPostgres

        return EmbeddedPostgres.start(
            folder, storage=place, access=access, create=create, read_only=read_only, timeout_s=timeout_s
        )
    return SqliteCatalog.open(
        folder, storage=place, access=access, create=create, read_only=read_only, timeout_s=timeout_s
    )


def _published(url: str | os.PathLike[str]) -> str | None:
    """The url, or the folder, where a published store is to be looked for; None where the store itself lies there."""
    if isinstance(url, str) and "://" in url and url.partition("://")[0] not in ("deeplake", "file", ""):
        return url
    folder = locate_store(url)
    if os.path.exists(Root(folder).catalog) or not os.path.exists(os.path.join(folder, POINTER)):
        return None
    return None if _is_embedded_postgres(folder, None) else folder


def _open_published(url: str, storage: object, access: Access, kind: Dialect | None, timeout_s: float) -> Catalog:
    from deeplake_loader.storage.published import open_published

    if storage is not None or kind == "postgres":
        raise InputError(f"{url} is a published store: it has its bytes there and a catalog of its own; give the url")
    return SqliteCatalog.open(open_published(url, access), create=False, read_only=True, timeout_s=timeout_s)


def _is_embedded_postgres(folder: str, kind: Dialect | None) -> bool:
    """Whether the store in a folder has, or shall have, a PostgreSQL server of its own."""
    own, file = os.path.join(folder, "postgres", "data", "PG_VERSION"), Root(folder).catalog
    found: Dialect | None = "postgres" if os.path.exists(own) else "sqlite" if os.path.exists(file) else None
    if found and kind and found != kind:
        raise InputError(f"the store in {folder} has a {found} catalog, not a {kind} one; leave catalog= out")
    return (found or kind) == "postgres"


def has_own_server(url: str) -> bool:
    """Whether the store in a folder, or ``deeplake://org/name``, has a PostgreSQL server of its own."""
    return _is_embedded_postgres(locate_store(url), None)


def locate_store(url: str | os.PathLike[str]) -> str:
    """The local folder that a URL names.

    >>> locate_store("deeplake://my-org/video-pipeline").endswith("my-org/video-pipeline")
    True
    """
    if not isinstance(url, str | os.PathLike) or not (text := os.fsdecode(url)) or "\0" in text:
        raise InputError(f"a store is named by a folder's path or deeplake://org/name, got {url!r}")
    scheme, found, rest = text.partition("://")
    if not found:
        return os.path.abspath(os.path.expanduser(text))
    if scheme == "file":
        return os.path.abspath(rest)
    if scheme != "deeplake":
        raise InputError(f"cannot open {scheme}:// stores: this release opens folders and deeplake://org/name")
    parts = rest.rstrip("/").split("/")
    if not all(re.fullmatch(r"[^\\\0/]+", p) and p not in (".", "..") for p in parts):
        raise InputError(f"{text!r} names no store; write deeplake://org/name, without empty, '.' or '..' parts")
    home = os.environ.get("DEEPLAKE_HOME") or os.path.join("~", ".deeplake")
    return os.path.join(os.path.abspath(os.path.expanduser(home)), *parts)


def assemble(catalog: Catalog, source: Source) -> Parts:
    """The parts of a handle, made for its catalog."""
    if catalog.dialect == "postgres":
        from deeplake_loader.postgres import assembly

        return assembly.assemble(catalog, source)
    from deeplake_loader import embedded

    return embedded.assemble(catalog, source)


class Database(
    BranchVerbs,
    MergingVerbs,
    MediaVerbs,
    QuarantineVerbs,
    IndexVerbs,
    SearchVerbs,
    InventoryVerbs,
    IngestVerbs,
    StorageVerbs,
    ExportVerbs,
    CareVerbs,
):
    """A handle on one store: one SQL over scalars, vectors and blobs. Threads may share it; close it when done.

    `connect` makes one. Its verbs, by what they are for:

    - rows: `execute`, `executemany`, `insert`, `transaction`, `tables`, `describe`
    - training: `stream`
    - searching: `search`, `similar`, `near_duplicates`, `create_index`, `drop_index`, `indexes`
    - branches and history: `branch`, `checkout`, `branches`, `merge`, `diff`, `log`, `commit`, `tag`, `at`, `revert`
    - data in and out: `ingest`, `export`; other tools: `engine`
    - videos: `transcode`, `clips`; samples that streams leave out: `quarantine`, `quarantined`, `release`
    - object storage: `prewarm`, `stats`
    - care: `info`, `statistics`, `verify`, `optimize`, `gc`, `close`; a version for everybody: `publish`

    >>> with connect("./video-pipeline") as db:                                     # doctest: +SKIP
    ...     db.execute("SELECT count(*) FROM generations").scalar()
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        parts = assemble(catalog, self)
        self._shards, self._vectors, self._indexes = parts.shards, parts.vectors, parts.indexes
        self._views, self._overlays, self._references = parts.views, parts.overlays, parts.references
        self._writer, self._runner = parts.writer, parts.runner
        self._engines: dict[str, Engine] = {}
        self._begin_searching(parts)
        self._begin_merging(self)

    @property
    def root(self) -> str:
        """The store's folder; of a catalog at a ``postgresql://`` URL the folder of its bytes, or of their copies."""
        return self._catalog.root.folder

    def __repr__(self) -> str:
        return f"<Database {self._catalog.name}: {len(self.tables())} tables>"

    # -- SQL -------------------------------------------------------------------------------------------------------

    def execute(self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> RowSet:
        """The rows of one statement (PostgreSQL's language), all of them read in one snapshot.

        Args:
            sql: placeholders are ``%s`` or ``?`` (params: a list), ``%(name)s`` or ``:name`` (params: a dict).
            params: values; a placeholder that stands for a column's value takes what the column holds: an array or a
                list for a VECTOR, frames, bytes or a file's path for a VIDEO, and so on.

        Raises:
            SQLError: the statement cannot be read or run; UnsupportedSQLError: valid SQL that would not give
                PostgreSQL's result over a catalog in a folder. ConstraintError, TypeMismatchError, MediaError,
                DimensionError: nothing of the statement was written.

        >>> rows = db.execute("SELECT prompt, frames FROM generations WHERE steps >= %s", [25])  # doctest: +SKIP
        >>> rows[0].prompt, rows[0].frames.decode(num_frames=16).shape, rows.to_arrow().num_rows  # doctest: +SKIP
        ('a paper boat', torch.Size([16, 3, 96, 128]), 40)
        """
        return self._runner.execute(sql, params)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> RowSet:
        """One INSERT, UPDATE or DELETE for every row of parameters, all or nothing; ``rowcount`` is the total.

        `insert` is several times faster for many new rows.
        """
        return RowSet((), (), [], rowcount=self._runner.executemany(sql, rows), returns_rows=False)

    def compiled(self, sql: str) -> Plan:
        """What a statement is, without running it: its kind, whether it writes, its result columns and their types."""
        return self._plan(sql)

    @contextmanager
    def transaction(self, message: str | None = None) -> Iterator[None]:
        """Several statements, one commit: all of them or, after an exception, none; a nested block is a savepoint."""
        with self._catalog.transaction(message):
            yield

    def at(self, ref: str | dt.datetime) -> Database:
        """A read-only handle on the rows of a tag, a commit id or a time (UTC; on this handle's branch); close it
        when done.

        >>> with db.at("v1") as then:                                               # doctest: +SKIP
        ...     then.execute("SELECT count(*) FROM generations").scalar()
        """
        point = branches_of(self._catalog).resolve(ref, branch=self._views.branch)
        where, timeout_s = self._catalog.location, self._catalog.timeout_s
        then = Database(where.open(create=False, read_only=True, timeout_s=timeout_s))
        then._views.show_point(point)
        return then

    def tables(self) -> Mapping[str, Table]:
        """The tables' definitions by name."""
        return self._catalog.tables()

    @property
    def engine(self) -> Engine:
        """A SQLAlchemy engine on this store and branch, for pandas, ORMs and whatever else takes one.

        Its connections are its own: they see what this handle has committed, and wait for a transaction that it holds
        open. `close` disposes of them. One that was kept stays on its branch: after `branch` or `checkout` ask again.
        A handle at a point in history has none.

        >>> pandas.read_sql("SELECT prompt, steps FROM generations", db.engine)     # doctest: +SKIP
        """
        from sqlalchemy import URL, create_engine
        from sqlalchemy.dialects import registry

        if self._views.fixed:
            raise InputError("a handle at a point in history has no engine; make a branch there and connect to it")
        branch = self.current_branch
        if branch not in self._engines:
            registry.register("deeplake", "deeplake_loader.sqlalchemy.dialect", "DeeplakeDialect")
            registry.register("deeplake.postgresql", "deeplake_loader.sqlalchemy.postgres", "PostgresDialect")
            options = {"branch": branch, "timeout_s": str(self._catalog.timeout_s)}
            options |= {"read_only": "true"} if self._catalog.read_only else {}
            where = self._catalog.location
            self._engines[branch] = create_engine(
                URL.create(**where.url()).update_query_dict(options), connect_args={"location": where}
            )
        return self._engines[branch]

    def describe(self, table: str) -> Description:
        """What a table is made of beside its columns: defaults, keys, constraints and indexes with their names."""
        with self._catalog.snapshot():
            return self._runner.describe(self._table(table))

    def _plan(self, sql: str) -> Plan:
        return self._runner.plan(sql)

    def _plan_stream(self, sql: str) -> Plan:
        plan = self._runner.stream_plan(sql)
        if plan.kind != "select":
            raise InputError(f"a stream needs a SELECT, got {plan.kind.upper().replace('_', ' ')}")
        return plan

    def _typed_errors(self) -> AbstractContextManager[None]:
        return self._runner.typed_errors()

    # -- bulk ------------------------------------------------------------------------------------------------------

    def insert(self, table: str, rows: object, *, validate: Validate = "structure", progress: bool = False) -> int:
        """The number of rows inserted, in one transaction: all or, after an error that names its row, none.

        Args:
            rows: an iterable of dicts, a dict of columns, an Arrow table or batches, or a DataFrame. Columns that are
                not given take their defaults.
            validate: how media is checked before it is stored. ``structure``: header, limits and end marker of an
                image, every packet of a video and its first frame; ``decode``: everything decoded, on all cores;
                ``none``: nothing.
            progress: show a progress bar.

        >>> db.insert("generations", {"prompt": ["a", "b"], "steps": [20, 30]})     # doctest: +SKIP
        2
        """
        if validate not in get_args(Validate):
            raise InputError(f"validate={validate!r} is none of {', '.join(get_args(Validate))}")
        done = 0
        with self._catalog.transaction(), progress_bar(known_length(rows), progress, unit=" rows") as bar:
            definition = self._table(table)
            brings_bytes = definition.blobs and not all_stored(rows, (c.name for c in definition.blobs))
            size = _BLOB_BATCH if brings_bytes else _VECTOR_BATCH
            for batch in batches(rows, size=size):
                self._runner.insert_batch(definition, batch, done, validate)
                done += batch.count
                bar(batch.count)
            self._writer.settle()
        return done

    def _table(self, name: str) -> Table:
        found = self._catalog.table(name) if isinstance(name, str) else None
        if found is None:
            known = ", ".join(t.name for t in self._catalog.tables().values()) or "none yet"
            raise NotFoundError(f"there is no table {name!r}; tables: {known}")
        return found

    # -- stream ----------------------------------------------------------------------------------------------------

    def stream(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None, *, batch_size: int, **options: Any
    ) -> Stream:
        """A Stream of the query's rows in batches: an IterableDataset whose batches are dicts of tensors.

        The query runs once, now; what changes afterwards does not touch the stream. Vectors come as (N, D), images as
        (N, 3, H, W), video as (N, T, 3, H, W), numbers as tensors, text as lists. Iterating again is the next epoch.

        Args:
            batch_size: samples per batch.
            options: ``shuffle``, ``seed``, ``transforms`` ({column: deeplake.Image(...)}), ``device``, ``tail``,
                ``rank`` and ``world_size`` (or ``mesh``, or ``process_group``; else found), ``num_threads``,
                ``prefetch``, ``on_error``, ``timeout_s``, ``progress`` and more: see `stream.build_stream`. Its
                ``weight``, ``bucket_by`` and ``budget`` take a column of the query, or a SQL expression over the
                query's tables, which then is in the batches as ``_weight``, ``_bucket`` or ``_cost``.

        Raises:
            SQLError: the query or an expression cannot be read; an expression beside DISTINCT, UNION or placeholders.

        >>> for batch in db.stream("SELECT frames, prompt FROM generations", batch_size=8, shuffle=True):
        ...     step(batch["frames"], batch["prompt"])                              # doctest: +SKIP
        """
        from deeplake_loader.stream.build import build_stream, check_names

        check_names(options)
        sql, options = self._measured(sql, self._plan_stream(sql), options)
        with self._catalog.snapshot() as commit:
            if self._catalog.in_transaction:  # this thread's: another one's was waited for
                raise InputError(
                    "a stream cannot begin inside a transaction, whose rows its readers do not see; commit first"
                )
            plan = self._plan_stream(sql)
            rows = self._runner.columnar(plan, params, sql)
            kept = self._kept(rows.addresses())
        if kept is not None:
            rows = rows.take(kept)
        options.setdefault("ordered", plan.ordered)
        return build_stream(self._catalog.location, rows, query=sql, commit=commit, batch_size=batch_size, **options)

    def _measured(self, sql: str, plan: Plan, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The query with a column for each expression that the options name, and the options with the column's name."""
        known = {column.name for column in plan.results}
        budget = options.get("budget")
        given = {"_weight": options.get("weight"), "_bucket": options.get("bucket_by")}
        given["_cost"] = getattr(budget, "cost", None)
        added = {name: text for name, text in given.items() if isinstance(text, str) and text not in known}
        if not added:
            return sql, options
        from deeplake_loader.sql.extended import extended

        options = dict(options)
        for name, option in (("_weight", "weight"), ("_bucket", "bucket_by")):
            if name in added:
                options[option] = name
        if "_cost" in added:
            options["budget"] = replace(budget, cost="_cost")  # type: ignore[type-var]
        return extended(sql, added), options

    # -- what handles ask for --------------------------------------------------------------------------------------

    def read_blob(self, address: int) -> bytes:
        """A blob's stored bytes, verified, by the address that a row's handle or the catalog names."""
        return self._shards.read(address)

    def blob_info(self, address: int) -> MediaInfo:
        """A blob's media facts."""
        from deeplake_loader.codecs import MediaInfo

        text, length = self._shards.info(address), self._shards.locate(address).length
        return replace(MediaInfo("bytes") if text is None else MediaInfo.from_json(text), nbytes=length)

    def locate(self, address: int) -> Place:
        """Where a blob lies."""
        return self._shards.locate(address)

    def decode_blob(self, address: int, transform: object | None, options: dict[str, Any]) -> torch.Tensor:
        """A blob decoded on the CPU."""
        from deeplake_loader.decode import cpu

        return cpu.to_torch(self.decode_array(address, transform, options))

    def decode_array(self, address: int, transform: object | None, options: dict[str, Any]) -> np.ndarray:
        """A blob decoded on the CPU without torch; bfloat16 as dtype 'V2'."""
        from deeplake_loader.decode import cpu, transforms, video

        info = self.blob_info(address)
        chosen = transforms.choose(info.media, transform, options)
        try:
            file = video.open_clip(self._shards, address, info, chosen)
            return cpu.decode(file or self.read_blob(address), info, chosen)
        except DecodeError as error:
            raise DecodeError(str(error), key=self.locate(address).key) from error

    def vector(self, address: int) -> np.ndarray:
        """A stored vector."""
        return self._vectors.array(address)

    def vectors(self, addresses: np.ndarray) -> np.ndarray:
        """Stored vectors, one a row."""
        return self._vectors.gather(addresses)

    # -- care ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give files and locks back; an open transaction is rolled back. Closing twice does nothing."""
        while self._engines:
            self._engines.popitem()[1].dispose()
        with self._catalog.exclusive():  # another thread's transaction may be at its commit: its files must stay
            self._shards.close()
            self._end_searching()
            self._vectors.close()
            self._catalog.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise StoreError("a Database holds open files and cannot be pickled; send its root and connect there")
