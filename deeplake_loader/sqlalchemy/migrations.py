"""What Alembic has to know of the dialect: which spellings of a type are one, and that DDL is part of a transaction."""

from __future__ import annotations

from alembic.ddl.impl import DefaultImpl


class DeeplakeImpl(DefaultImpl):
    """Found by Alembic by its dialect's name once it is imported."""

    __dialect__ = "deeplake"
    transactional_ddl = True
    type_synonyms = (
        *DefaultImpl.type_synonyms,
        {"TEXT", "VARCHAR", "CHAR"},
        {"FLOAT", "DOUBLE PRECISION"},
    )
