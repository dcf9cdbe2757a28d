"""SQLAlchemy 2 on a store: the dialect ``deeplake://<folder>?branch=main``, column types for vectors and media.

    >>> import sqlalchemy as sa
    >>> from deeplake_loader.sqlalchemy import Image, Vector
    >>> engine = sa.create_engine("deeplake:///./store?branch=experiment/x")        # doctest: +SKIP
    >>> class Photo(Base):                                                          # doctest: +SKIP
    ...     __tablename__ = "photos"
    ...     id: Mapped[int] = mapped_column(primary_key=True)
    ...     picture = mapped_column(Image())
    ...     clip = mapped_column(Vector(512))
    >>> session.scalars(sa.select(Photo).order_by(Photo.clip.cosine_similarity(q).desc()).limit(10))   # doctest: +SKIP

SQLAlchemy finds the dialect by the package's entry point, and where the package is not installed (a checkout) once this
module was imported. ``deeplake:///relative``, ``deeplake:////absolute`` and ``deeplake://org/name`` name stores; the
query takes ``branch``, ``read_only``, ``create`` and ``timeout_s``.
"""

from sqlalchemy.dialects import registry

from deeplake_loader.sqlalchemy.types import Audio, Blob, Image, Tensor, Vector, Video

__all__ = ["Audio", "Blob", "Image", "Tensor", "Vector", "Video"]

for _name in ("deeplake", "deeplake.deeplake"):  # the second with its driver: deeplake+deeplake://
    registry.register(_name, "deeplake_loader.sqlalchemy.dialect", "DeeplakeDialect")
registry.register("deeplake.postgresql", "deeplake_loader.sqlalchemy.postgres", "PostgresDialect")
