"""An ORM over a store: models with vectors and images, a branch to try things on, search, and the merge back.

    python examples/orm.py [store] [sqlite | postgres]

The store is made with that catalog; the second needs the extra [postgres]. Needs no network and no GPU; takes seconds.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

import deeplake_loader as deeplake
from deeplake_loader.sqlalchemy import Image, Vector


class Base(DeclarativeBase):
    pass


class Run(Base):
    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    model: Mapped[str] = mapped_column(unique=True)
    pictures: Mapped[list[Picture]] = relationship(back_populates="run")


class Picture(Base):
    __tablename__ = "pictures"
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    prompt: Mapped[str]
    steps: Mapped[int]
    pixels: Mapped[object] = mapped_column(Image())
    clip: Mapped[object] = mapped_column(Vector(16))
    run_id: Mapped[int] = mapped_column(sa.ForeignKey("runs.id"))
    run: Mapped[Run] = relationship(back_populates="pictures")


def fill(engine: sa.Engine, rng: np.random.Generator) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        run = Run(model="sdxl-1.0")
        for i in range(40):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            clip = rng.standard_normal(16).astype(np.float32)
            run.pictures.append(Picture(prompt=f"prompt {i}", steps=10 + i, pixels=pixels, clip=clip))
        session.add(run)
        session.commit()


def search(engine: sa.Engine, query: np.ndarray) -> list[str]:
    score = Picture.clip.cosine_similarity(query)  # type: ignore[attr-defined]
    best = sa.select(Picture, score.label("score")).where(Picture.steps >= 25).order_by(score.desc()).limit(3)
    with Session(engine) as session:
        return [f"{picture.prompt} of {picture.run.model}: {score:.3f}" for picture, score in session.execute(best)]


def main(store: str, catalog: str | None = None) -> None:
    rng = np.random.default_rng(0)
    with deeplake.connect(store, catalog=catalog) as db:  # type: ignore[arg-type]
        fill(db.engine, rng)
        print("best:", *search(db.engine, rng.standard_normal(16)), sep="\n  ")

        db.branch("without-drafts")
        with Session(db.engine) as session:  # asked for anew: an engine stays on its branch
            gone = session.execute(sa.delete(Picture).where(Picture.steps < 20)).rowcount  # type: ignore[attr-defined]
            session.commit()
        print(f"{gone} drafts gone on the branch")
        for branch in ("main", "without-drafts"):
            db.checkout(branch)
            with Session(db.engine) as session:
                print(f"{branch}: {session.scalar(sa.select(sa.func.count(Picture.id)))} pictures")
        db.checkout("main")
        db.merge("without-drafts")

        batch = next(iter(db.stream("SELECT pixels, prompt FROM pictures", batch_size=8)))
        print("streamed:", tuple(batch["pixels"].shape))


if __name__ == "__main__":
    main(*(sys.argv[1:] or [tempfile.mkdtemp()]))
