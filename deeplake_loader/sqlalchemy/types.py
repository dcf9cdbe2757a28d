"""Column types that other databases lack, between SQLAlchemy and `deeplake_loader.types`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine, UserDefinedType

from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    from sqlalchemy.sql.elements import ColumnElement


class StoredApart(UserDefinedType[Any]):
    """A type whose values lie outside of the SQL table. They are bound as `Database.execute` takes them, and come back
    as lazy handles that read nothing until asked."""

    hashable = False

    @property
    def column_type(self) -> ColumnType:
        """The type as the store knows it."""
        raise NotImplementedError

    def get_col_spec(self, **_: Any) -> str:
        return str(self.column_type)

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        return self


class Vector(StoredApart):
    """``VECTOR(dimension)``: arrays, lists or handles in; `deeplake_loader.rows.Vector` handles out, which numpy reads.

    Columns have ``cosine_similarity(q)``, ``l2_distance(q)`` and ``inner_product(q)``, q being an array, a list or
    another vector column, for any place of any statement.
    """

    cache_ok = True

    def __init__(self, dimension: int, dtype: str = "float32") -> None:
        self.dimension, self.dtype = dimension, dtype

    @property
    def column_type(self) -> ColumnType:
        return ColumnType("VECTOR", dtype=self.dtype, shape=(self.dimension,))

    class Comparator(UserDefinedType.Comparator[Any]):
        """The scores; those of NULL and zero vectors are NULL and sort last."""

        def cosine_similarity(self, other: Any) -> ColumnElement[float]:
            """Largest first: 1 for equal directions."""
            return self._score("cosine_similarity", other)

        def l2_distance(self, other: Any) -> ColumnElement[float]:
            """Smallest first: 0 for equal vectors."""
            return self._score("l2_distance", other)

        def inner_product(self, other: Any) -> ColumnElement[float]:
            """Largest first."""
            return self._score("inner_product", other)

        def _score(self, name: str, other: Any) -> ColumnElement[float]:
            given = other if hasattr(other, "__clause_element__") or isinstance(other, sa.ClauseElement) else None
            query = sa.literal(other, self.type) if given is None else given
            score: Callable[..., ColumnElement[float]] = getattr(sa.func, name)
            return score(self.expr, query, type_=sa.Double())

    comparator_factory = Comparator


class Tensor(StoredApart):
    """``TENSOR(dtype, dims...)``: arrays in, None for a free dimension; without arguments any array."""

    cache_ok = True

    def __init__(self, dtype: str | None = None, *shape: int | None) -> None:
        self.dtype, self.shape = dtype, shape

    @property
    def column_type(self) -> ColumnType:
        return ColumnType("TENSOR", dtype=self.dtype, shape=self.shape or None)


class _Media(StoredApart):
    def __init__(self, **options: str | int) -> None:
        self.options = tuple(sorted(options.items()))

    @property
    def column_type(self) -> ColumnType:
        return ColumnType(type(self).__name__.upper(), options=self.options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options)})"


class Image(_Media):
    """``IMAGE``: bytes, paths, arrays or pictures in; options as in ``Image(codec="jpeg", quality=90)``."""

    cache_ok = True


class Video(_Media):
    """``VIDEO``: bytes, paths or frames in; options as in ``Video(codec="h264", crf=18)``."""

    cache_ok = True


class Audio(_Media):
    """``AUDIO``: bytes, paths or samples in."""

    cache_ok = True


class Blob(_Media):
    """``BLOB``: bytes in a shard; `sqlalchemy.LargeBinary` keeps them in the table itself."""

    cache_ok = True


def reflected(kind: ColumnType, length: int | None = None) -> TypeEngine[Any]:
    """SQLAlchemy's type for a column of the store; ``length`` of a VARCHAR."""
    options = dict(kind.options)
    if kind.name == "VECTOR":
        return Vector(kind.dimension, kind.dtype or "float32")
    if kind.name == "TENSOR":
        return Tensor(kind.dtype, *(kind.shape or ()))
    if kind.is_blob:
        media = {"IMAGE": Image, "VIDEO": Video, "AUDIO": Audio, "BLOB": Blob}[kind.name]
        return media(**options)
    if kind.name == "NUMERIC":
        return sa.NUMERIC(options.get("precision"), options.get("scale"))  # type: ignore[arg-type]
    if kind.name == "TEXT" and length is not None:
        return sa.VARCHAR(length)
    return _SCALARS[kind.name]()


_SCALARS: dict[str, Callable[[], TypeEngine[Any]]] = {
    "TEXT": sa.TEXT, "SMALLINT": sa.SMALLINT, "INTEGER": sa.INTEGER, "BIGINT": sa.BIGINT, "REAL": sa.REAL,
    "DOUBLE": sa.DOUBLE_PRECISION, "BOOLEAN": sa.BOOLEAN, "DATE": sa.DATE, "TIME": sa.TIME, "JSON": sa.JSON,
    "TIMESTAMP": sa.TIMESTAMP, "TIMESTAMPTZ": lambda: sa.TIMESTAMP(timezone=True), "UUID": sa.UUID,
    "BYTEA": postgresql.BYTEA,
}  # fmt: skip
