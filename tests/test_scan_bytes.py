"""int8 scan copies: what they hold, that the candidates they leave contain the exact best, and when they give up."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli_store import ran
from hypothesis import given, settings
from hypothesis import strategies as st

import deeplake_loader as deeplake
from deeplake_loader import errors, kernels
from deeplake_loader.matrices import Layout, Tail
from deeplake_loader.search import copies, engine, forms
from deeplake_loader.search.candidates import Candidates, Part
from deeplake_loader.types import ORDINAL_BITS

D, METRICS = 24, ("cosine", "l2", "inner")
TABLE = f"CREATE TABLE g (id BIGINT PRIMARY KEY, part BIGINT, v VECTOR({D}))"


def vectors(count: int, seed: int = 0) -> np.ndarray:
    """Rows of lengths from 3 to 8 with exact repeats, a few all zero."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, D)) * 10 ** rng.uniform(-0.1, 0.1, (count, 1))
    rows[rng.integers(0, count, count // 5)] = rows[: count // 5]
    rows[rng.integers(0, count, count // 50)] = 0
    return rows.astype(np.float32)


def truth(rows: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """Scores in float64 by numpy, larger is better, -inf where there is none."""
    x, q = rows.astype(np.float64), query.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scores = {
            "l2": lambda: -np.linalg.norm(x - q, axis=1),
            "inner": lambda: x @ q,
            "cosine": lambda: x @ q / (np.linalg.norm(x, axis=1) * np.linalg.norm(q)),
        }[metric]()
    return np.where(np.isfinite(x).all(axis=1) & np.isfinite(q).all() & np.isfinite(scores), scores, -np.inf)


def crc32c(data: bytes) -> int:
    """Castagnoli's polynomial, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of the matrices that searches by one query scan, in order."""
    seen: list[str] = []
    topk, reaching = kernels.topk, kernels.reaching

    def noted_topk(matrix: Any, *a: Any, **o: Any) -> Any:
        seen.append(matrix.dtype.name)
        return topk(matrix, *a, **o)

    def noted_reaching(m: Any, n: int, d: int, dtype: Any, *a: Any, **o: Any) -> Any:
        seen.append(dtype)
        return reaching(m, n, d, dtype, *a, **o)

    monkeypatch.setattr(kernels, "topk", noted_topk)
    monkeypatch.setattr(kernels, "reaching", noted_reaching)
    return seen


@pytest.fixture
def db(tmp_path: Path) -> Iterator[deeplake.Database]:
    """20,000 rows in one sealed file that has an int8 copy."""
    with deeplake.connect(tmp_path / "s") as database:
        database.execute(TABLE)
        rows = vectors(20_000, seed=8)
        database.insert("g", {"id": np.arange(20_000), "part": np.arange(20_000) % 100, "v": rows})
        database.optimize(scan_copies="int8")
        yield database


def query(seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(D).astype(np.float32)


def only(db: deeplake.Database, pattern: str) -> Path:
    (path,) = Path(db.root).rglob(pattern)
    return path


def agrees(found: Any, ids: np.ndarray, rows: np.ndarray, q: np.ndarray, metric: str, k: int) -> None:
    """The k best scores of ``rows``, each of the row that has it, none twice."""
    scores = truth(rows, q, metric)
    by_id, got = dict(zip(ids.tolist(), scores.tolist(), strict=True)), [row.id for row in found]
    best = np.sort(scores)[::-1][:k]
    assert len(set(got)) == len(got) == len(best)
    np.testing.assert_allclose([by_id[i] for i in got], best, rtol=1e-9, atol=1e-9)


# -- the format --------------------------------------------------------------------------------------------------------


def test_a_copy_is_a_npy_of_int8_with_the_rows_steps_checksums_and_bounds_behind_it(db: deeplake.Database) -> None:
    path, source = only(db, "*.i8"), only(db, "*.npy")
    data, rows = path.read_bytes(), np.load(source)
    held = np.load(path)
    assert held.dtype == np.int8 and held.shape == rows.shape and held.min() >= -127
    at = 128 + rows.size
    steps = np.frombuffer(data, "<f4", len(rows), at)
    np.testing.assert_array_equal(steps, np.abs(rows).max(axis=1) / np.float32(127))
    assert (np.abs(held * steps[:, None].astype(np.float64) - rows) <= steps[:, None] * 0.5001).all()
    checks = np.frombuffer(data, "<u4", 1, at + 4 * len(rows))
    assert checks.tolist() == [crc32c(data[:at])]
    magic, sha256, count, relative, absolute, longest = struct.unpack_from("<8s32sQ3d", data, at + 4 * len(rows) + 4)
    assert (magic, count) == (b"dl-i8\x01\n\n", len(rows)) and sha256.hex() == sha256_of(source)
    missed = np.linalg.norm(rows - (held.astype(np.float32) * steps[:, None]).astype(np.float64), axis=1)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    some = lengths > 0
    np.testing.assert_allclose(
        [relative, absolute, longest], [(missed[some] / lengths[some]).max(), missed.max(), lengths.max()], rtol=1e-12
    )
    assert int.from_bytes(data[-4:], "little") == crc32c(data[at:-4])


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- the same rows as brute force --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_searches_are_exact_with_filters_deletes_ties_and_on_branches(
    db: deeplake.Database, metric: Any, scans: list[str]
) -> None:
    rows, ids = vectors(20_000, seed=8), np.arange(20_000)
    for q in (query(), rows[17], query(3) * 1000):
        agrees(db.search("g", "v", q, k=25, metric=metric), ids, rows, q, metric, 25)
        some = ids % 100 < 60
        agrees(db.search("g", "v", q, k=25, metric=metric, where="part < 60"), ids[some], rows[some], q, metric, 25)
    assert set(scans) == {"int8"}, "every search was settled by the copy"
    alone, several = db.search("g", "v", query(), k=9, metric=metric), np.stack([query()] * 2)
    assert db.search("g", "v", several, k=9, metric=metric)[1].scores.tobytes() == alone.scores.tobytes()
    assert "float16" not in scans and scans[-1] == "float32", "batches read the file"
    best = [row.id for row in db.search("g", "v", query(), k=7, metric=metric)]
    db.branch("b")
    db.execute(f"DELETE FROM g WHERE id IN ({', '.join(map(str, best))})")
    left = ~np.isin(ids, best)
    agrees(db.search("g", "v", query(), k=25, metric=metric), ids[left], rows[left], query(), metric, 25)
    db.checkout("main")
    agrees(db.search("g", "v", query(), k=25, metric=metric), ids, rows, query(), metric, 25)


def held_by(rows: np.ndarray, form: forms.Form) -> copies.Copy:
    held, bounds = form.hold(rows), [0.0, 0.0, 0.0]
    copies._widen(bounds, rows.astype(np.float64), held.values)
    matrix: Any = Tail(form.layout(rows.shape[1]), held.stored.tobytes())
    return copies.Copy(form, matrix, held.steps, *bounds)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Part]:
    """Rows of few distinct values with repeats, zeros and no scores; a query; the rows that are looked at."""
    count, dimension = draw(st.integers(1, 60)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    rows = draw(st.sampled_from([
        lambda: rng.integers(-2, 3, (count, dimension)),
        lambda: rng.standard_normal((count, dimension)),
        lambda: 1 + rng.standard_normal((count, dimension)) * 1e-3,
        lambda: rng.standard_normal((count, dimension)) * 10 ** rng.uniform(-18, 18, (count, 1)),
    ]))().astype(np.float32)  # fmt: skip
    for bad in draw(st.lists(st.sampled_from([0.0, np.nan, np.inf, -np.inf]), max_size=6)):
        rows[rng.integers(0, count), 0 if bad else slice(None)] = bad
    rows[rng.integers(0, count, count // 3)] = rows[rng.integers(0, count, count // 3)]
    q = rows[rng.integers(0, count)] if draw(st.booleans()) else rng.standard_normal(dimension)
    q = np.nan_to_num(q, posinf=1, neginf=1).astype(np.float32)
    chosen = np.flatnonzero(rng.random(count) < draw(st.sampled_from([0.3, 1.0])))
    chosen = chosen if len(chosen) else np.arange(count)
    if draw(st.booleans()):
        flags = np.zeros(count, bool)
        flags[chosen] = True
        bitmap = bytearray(np.packbits(flags, bitorder="little").tobytes())
        return rows, q, Part(3, len(chosen), int(chosen[-1]), bitmap=bitmap)
    return rows, q, Part(3, len(chosen), int(chosen[-1]), rows=array("q", chosen.tolist()))


@pytest.mark.parametrize("room", [0, 5, 512])
@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(METRICS), st.integers(1, 30), st.booleans())
def test_the_winners_are_those_of_brute_force_in_float64(
    room: int, problem: tuple[np.ndarray, np.ndarray, Part], metric: Any, k: int, repeated: bool
) -> None:
    """With a large room the copy always decides, with none nearly never; a second file begins with a threshold."""
    rows, q, part = problem
    source: Any = Tail(Layout(rows.shape[1], "float32"), rows.tobytes())
    coarse = held_by(rows, forms.FORMS["int8"])
    made: Any = SimpleNamespace(of=lambda file, matrix, form: coarse if form.kind == "int8" else None)
    parts = (part, Part(4, part.count, part.last, part.rows, part.bitmap)) if repeated else (part,)

    def unused(addresses: Any) -> Any:
        raise AssertionError(addresses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_COPY_ROWS", 1)
        patch.setattr(engine, "_PASSING", room)
        found = engine.Searcher(lambda file, last: source, unused, made).winners(
            metric, Candidates(parts), q.tobytes(), k, metric != "l2"
        )
    plain = engine.Searcher(lambda file, last: source, unused).winners(
        metric, Candidates(parts), q.tobytes(), k, metric != "l2"
    )
    assert found == plain
    if found is not None:
        scores = truth(rows, q, metric)
        looked = np.flatnonzero(np.unpackbits(np.frombuffer(part.bitmap, np.uint8), bitorder="little")[: len(rows)]) \
            if part.bitmap is not None else np.array(part.rows)  # fmt: skip
        best = np.sort(np.repeat(scores[looked], len(parts)))[::-1][k - 1]
        ours = scores[[address & ((1 << ORDINAL_BITS) - 1) for address in found]]
        scale = 1e-9 * max(1.0, float(np.abs(scores[np.isfinite(scores)]).max(initial=0)))
        assert (ours >= best - scale).all()
        assert len(found) >= int((np.repeat(scores[looked], len(parts)) > best + scale).sum())


@settings(max_examples=200, deadline=None)
@given(problems(), st.sampled_from(METRICS), st.sampled_from(sorted(forms.FORMS)))
def test_no_score_from_a_copy_is_off_by_more_than_its_bound(
    problem: tuple[np.ndarray, np.ndarray, Part], metric: Any, kind: str
) -> None:
    """Rows without a score have none in the copy either, and hide no other row's error."""
    rows, q, _ = problem
    copy = held_by(rows, forms.FORMS[kind])
    if copy.relative > copy.form.worst:
        return  # no copy is made of such rows
    held = forms.FORMS[kind].hold(rows).values
    exact, coarse = truth(rows, q, metric), truth(held, q, metric)
    assert np.array_equal(np.isfinite(exact), np.isfinite(coarse))
    some = np.isfinite(exact)
    fixed, by_length = copy.error(metric)
    allowed = fixed + by_length * np.linalg.norm(q.astype(np.float64))
    assert (np.abs(exact[some] - coarse[some]) <= allowed * (1 + 1e-9)).all()


# -- when the copy does not settle it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("better", [None, "float16"])
def test_where_too_many_rows_pass_the_next_better_copy_is_scanned(
    tmp_path: Path, scans: list[str], better: Any
) -> None:
    rng = np.random.default_rng(4)
    rows = (1 + rng.standard_normal((9_000, D)) * 1e-4).astype(np.float32)  # int8 tells none of them apart
    with deeplake.connect(tmp_path / "s") as db:
        db.execute(TABLE)
        db.insert("g", {"id": np.arange(9_000), "v": rows})
        db.optimize(scan_copies="int8")
        if better is not None:
            db.optimize(scan_copies=better)
        for metric in METRICS:
            scans.clear()
            agrees(db.search("g", "v", rows[5], k=10, metric=metric), np.arange(9_000), rows, rows[5], metric, 10)
            assert scans == ["int8", better or "float32"]


def test_rows_that_int8_cannot_hold_have_no_copy(tmp_path: Path) -> None:
    rows = vectors(9_000, seed=3)
    rows[77] = np.linspace(1, 2, D) * 1e-5
    rows[77, 0] = 1  # the step is the outlier's
    rows[78] = 1e-44  # and below float32's normal range a step is nothing
    with deeplake.connect(tmp_path / "s") as db:
        db.execute(TABLE)
        db.insert("g", {"id": np.arange(9_000), "v": rows})
        db.optimize(scan_copies="int8")
        assert not list(Path(db.root).rglob("*.i8*"))
        assert db.search("g", "v", rows[77], k=1)[0].id == 77


# -- care --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["header", "rows", "steps", "trailer", "cut", "empty"])
def test_a_damaged_copy_is_dropped_by_a_search_and_made_again(db: deeplake.Database, where: str) -> None:
    path, rows = only(db, "*.i8"), vectors(20_000, seed=8)
    whole = path.read_bytes()
    at = {"header": 40, "rows": 300_000, "steps": 128 + rows.size + 9, "trailer": len(whole) - 30}.get(where)
    path.unlink()  # what is mapped stays what it was
    path.write_bytes(
        whole[: len(whole) // 2 if where == "cut" else 0]
        if at is None
        else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    )
    with deeplake.connect(db.root) as fresh:
        agrees(fresh.search("g", "v", query(), k=10), np.arange(20_000), rows, query(), "cosine", 10)
        assert not path.exists()
        fresh.optimize(scan_copies="int8")
        assert path.read_bytes() == whole


def test_verify_finds_a_damaged_copy_and_repairs_it_beside_a_sound_one(db: deeplake.Database) -> None:
    db.optimize(scan_copies="float16")
    path, other = only(db, "*.i8"), only(db, "*.f16")
    whole, sound = path.read_bytes(), other.read_bytes()
    assert db.verify().problems == ()
    path.unlink()
    path.write_bytes(whole[:5_000] + b"\x55" + whole[5_001:] if whole[5_000] != 0x55 else whole[:-1])
    report = db.verify()
    assert [problem.kind for problem in report.problems] == ["derived"] and not report.ok
    assert db.verify(repair=True).ok and path.read_bytes() == whole and other.read_bytes() == sound


def test_gc_takes_the_copy_with_its_file_and_not_before(db: deeplake.Database) -> None:
    path = only(db, "*.i8")
    assert db.gc(older_than_s=0).files == ()
    db.execute("DELETE FROM g")
    db.optimize(keep=0)
    assert path.name in {Path(name).name for name in db.gc(older_than_s=0, dry_run=False).files}
    assert not path.exists()


@pytest.mark.parametrize(("options", "suffixes"), [((), {"f16"}), (("float16",), {"f16"}), (("int8",), {"i8"})])
def test_the_command_line_makes_the_copies_that_are_named(
    tmp_path: Path, options: tuple[str, ...], suffixes: set[str]
) -> None:
    with deeplake.connect(tmp_path / "s") as db:
        db.execute(TABLE)
        db.insert("g", {"id": np.arange(9_000), "v": vectors(9_000)})
    ran(tmp_path / "s", "optimize", "--scan-copies", *options)
    found = {path.suffix[1:] for path in (tmp_path / "s" / "vectors").rglob("*.*")}
    assert found - {"npy"} == suffixes


@pytest.mark.parametrize("wrong", ["int4", "none", 2])
def test_other_kinds_of_copies_are_refused_before_anything_is_done(db: deeplake.Database, wrong: Any) -> None:
    with pytest.raises(errors.InputError, match="expected True, False, 'float16' or 'int8'"):
        db.optimize(scan_copies=wrong)


# -- real embeddings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("prompts_minilm_l6_v2_384.npy", METRICS),  # texts that were written twice: exact duplicates
        ("clip_graffiti/clip_embeddings.npy", METRICS),  # not normalised, ten times
        ("bigann10k/base.npy", ("l2", "cosine")),  # uint8
    ],
)
def test_real_embeddings_are_found_as_by_brute_force(
    sample_data: Path, tmp_path: Path, name: str, metrics: tuple[Any, ...], scans: list[str]
) -> None:
    path = sample_data / "embeddings" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    rows = np.load(path).astype(np.float32)
    rows = np.tile(rows, (-(-9_000 // len(rows)), 1))
    with deeplake.connect(tmp_path / "s") as db:
        db.execute(f"CREATE TABLE e (id BIGINT PRIMARY KEY, v VECTOR({rows.shape[1]}))")
        db.insert("e", {"id": np.arange(len(rows)), "v": rows})
        db.optimize(scan_copies="int8")
        for metric in metrics:
            for q in rows[:: len(rows) // 8] + np.float32(1e-3):
                agrees(db.search("e", "v", q, k=30, metric=metric), np.arange(len(rows)), rows, q, metric, 30)
    assert "int8" in scans
