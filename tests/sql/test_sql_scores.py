"""Similarity scores in SQL: where NULLs go, what is refused, and that the fast path never changes a result."""

from __future__ import annotations

import json
import math
import random
import sqlite3
import struct
from typing import Any

import pytest

from deeplake_loader.errors import DeeplakeError, DimensionError, SQLError
from deeplake_loader.sql import compile_statement, compile_stream, shims
from deeplake_loader.sql.plan import Bind, FastPath, Plan

TABLES = """CREATE TABLE g (id BIGINT PRIMARY KEY, e VECTOR(3), f VECTOR(3), w VECTOR(4), m TEXT, s INTEGER, img IMAGE)
CREATE TABLE tag (id BIGINT PRIMARY KEY, gid INTEGER, t TEXT)""".splitlines()


class Scored:
    """300 rows over 3-dimensional vectors full of ties; every fifth address is shared, some have no score."""

    def __init__(self) -> None:
        rnd = random.Random(1)
        self.vectors: dict[int, list[float]] = {
            i: [rnd.choice([0.0, 0.5, 1.0]) for _ in range(3)] for i in range(1, 301)
        }
        self.calls = 0
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        shims.register(self.db, lambda: "2026-11-22 10:00:00.000000")
        self.schema = {}
        for ddl in TABLES:
            plan = compile_statement(ddl, {})
            assert plan.definition is not None
            self.schema[plan.definition.name] = plan.definition
            self.db.execute(plan.sql)
        for name in ("cosine_similarity", "cosine_distance", "l2_distance", "inner_product", "negative_inner_product"):
            self.db.create_function(name, 2, self._function(name), deterministic=True)
        for i in range(1, 301):
            address = None if i % 50 == 0 else i if i % 5 else i - 1
            self.db.execute("INSERT INTO g VALUES (?,?,?,NULL,?,?,NULL)", (i, address, 301 - i, f"m{i % 7}", i % 40))
            for j in range(i % 4):
                self.db.execute("INSERT INTO tag (gid, t) VALUES (?,?)", (i, f"t{j}"))

    def vector(self, value: Any) -> list[float] | None:
        if isinstance(value, int):
            return self.vectors.get(value)
        if isinstance(value, bytes):
            return list(struct.unpack(f"<{len(value) // 4}f", value))
        return None if value is None else json.loads(value)

    def _function(self, name: str) -> Any:
        def score(a: Any, b: Any) -> float | None:
            self.calls += 1
            return measure(name, self.vector(a), self.vector(b))

        return score

    def bind(self, plan: Plan, binds: tuple[Bind, ...], params: Any, winners: str = "") -> list[Any]:
        out = []
        for bind, value in zip(binds, plan.resolve(params, binds, winners=winners), strict=True):
            if bind.score:
                value = json.loads(value) if isinstance(value, str) else value
                assert bind.type is not None and len(value) == bind.type.dimension
                value = struct.pack(f"<{len(value)}f", *value)
            out.append(value)
        return out

    def plain(self, plan: Plan, params: Any) -> list[tuple[Any, ...]]:
        return self.db.execute(plan.sql, self.bind(plan, plan.binds, params)).fetchall()

    def winners(self, fast: FastPath, plan: Plan, params: Any) -> list[int] | None:
        """The tie rule, computed apart from the statement: by candidate rows, ties never cut, None to run unchanged."""
        text = self.db.execute(fast.candidates_sql, self.bind(plan, fast.candidate_binds, params)).fetchall()
        assert len(text) == 1 and len(text[0]) == 1
        addresses = [int(a) for a in (text[0][0] or "").split(",") if a]
        query = self.vector(self.bind(plan, (fast.query,), params)[0])
        name = {"cosine": "cosine_similarity", "l2": "l2_distance", "inner": "inner_product"}[fast.metric]
        scores = {a: s for a in addresses if (s := measure(name, self.vectors.get(a), query)) is not None}
        rows = sorted((scores[a] for a in addresses if a in scores), reverse=fast.largest)
        counts = [n if isinstance(n, int) else self.bind(plan, (n,), params)[0] for n in (fast.limit, fast.offset)]
        wanted = sum(counts)
        if wanted == 0 or len(rows) < wanted:
            return None
        edge = rows[wanted - 1]
        return sorted(a for a, s in scores.items() if (s >= edge - 1e-9 if fast.largest else s <= edge + 1e-9))

    def fast(self, plan: Plan, params: Any) -> list[tuple[Any, ...]] | None:
        assert plan.fast is not None
        found = self.winners(plan.fast, plan, params)
        if found is None:
            return None
        values = self.bind(plan, plan.fast.final_binds, params, json.dumps(found))
        return self.db.execute(plan.fast.final_sql, values).fetchall()


def measure(name: str, a: list[float] | None, b: list[float] | None) -> float | None:
    if a is None or b is None:
        return None
    if name == "l2_distance":
        return round(math.dist(a, b), 9)
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    if name in ("inner_product", "negative_inner_product"):
        return round(dot if name == "inner_product" else -dot, 9)
    norms = math.hypot(*a) * math.hypot(*b)
    if norms == 0:
        return None
    return round(dot / norms if name == "cosine_similarity" else 1 - dot / norms, 9)


@pytest.fixture(scope="module")
def scored() -> Scored:
    return Scored()


Q, Q2 = [1.0, 0.2, 0.0], [0.0, 1.0, 0.5]
S = "cosine_similarity(e, :q)"

FAST = [
    f"SELECT id, {S} sc FROM g WHERE s > 3 ORDER BY sc DESC, id LIMIT 10",
    f"SELECT id, {S} sc FROM g ORDER BY sc DESC, id LIMIT 10",
    f"SELECT id, {S} sc FROM g WHERE s > 38 OR s < 3 ORDER BY sc DESC, id LIMIT 10",
    f"SELECT id, {S} sc FROM g ORDER BY 2 DESC, s, id LIMIT 10",
    f"SELECT id FROM g ORDER BY {S} DESC, id LIMIT 20",
    f"SELECT id FROM g ORDER BY {S} DESC NULLS LAST, id LIMIT 7 OFFSET 5",
    f"SELECT id FROM g ORDER BY {S} DESC, id LIMIT :k OFFSET :o",
    f"SELECT id, {S} sc FROM g ORDER BY sc, id LIMIT 10",
    "SELECT id FROM g ORDER BY e <=> :q, id LIMIT 10",
    "SELECT id FROM g ORDER BY e <=> :q DESC, id LIMIT 10",
    "SELECT id, e <-> :q AS d FROM g ORDER BY d, id LIMIT 10",
    "SELECT id FROM g ORDER BY l2_distance(:q, e) DESC, id LIMIT 10",
    "SELECT id FROM g ORDER BY e <#> :q, id LIMIT 10",
    "SELECT id FROM g ORDER BY inner_product(e, :q) DESC, id LIMIT 10",
    "SELECT id FROM g ORDER BY cosine_similarity(e, '[1, 0.2, 0]') DESC, id LIMIT 10",
    "SELECT id FROM g ORDER BY e <=> '[1, 0.2, 0]'::vector, id LIMIT 10",
    "SELECT id FROM g ORDER BY cosine_similarity(e, :q::vector(3)) DESC, id LIMIT 10",
    f"SELECT g.id, t.t, {S} sc FROM g JOIN tag t ON t.gid = g.id AND t.t = 't2' ORDER BY sc DESC, g.id LIMIT 10",
    f"SELECT g.id, t.t, {S} sc FROM g JOIN tag t ON t.gid = g.id ORDER BY sc DESC, g.id, t LIMIT 10",
    f"SELECT x.gid, {S} sc FROM tag x LEFT JOIN g ON g.id = x.gid + 290 ORDER BY sc DESC, gid, t LIMIT 10",
    f"SELECT x.gid, {S} sc FROM tag x LEFT JOIN g ON g.id = x.gid + 290 ORDER BY sc DESC, gid, t LIMIT 400",
    f"SELECT id, {S} sc, (SELECT count(*) FROM g) n FROM g ORDER BY sc DESC, id LIMIT 10",
    f"SELECT id, {S} sc, (SELECT count(*) FROM g h WHERE h.m = g.m) n FROM g ORDER BY sc DESC, id LIMIT 10",
    f"WITH x AS (SELECT id, m, {S} sc FROM g ORDER BY sc DESC, id LIMIT 10) "
    "SELECT m, count(*) FROM x GROUP BY m ORDER BY m",
    f"WITH y AS (SELECT id FROM g WHERE s > 9), x AS (SELECT id, {S} sc FROM g WHERE id IN (SELECT id FROM y) "
    "ORDER BY sc DESC, id LIMIT 10) SELECT id FROM x WHERE id > 20 ORDER BY id",
    f"SELECT max(sc) FROM (SELECT {S} sc FROM g WHERE s < 30 ORDER BY sc DESC LIMIT 12) t",
    f"SELECT id, {S} sc, cosine_similarity(e, :q2) z FROM g ORDER BY sc DESC, id LIMIT 10",
    f"SELECT id, {S} AS s FROM g ORDER BY s DESC, id LIMIT 10",
    f"SELECT id, {S} sc FROM g WHERE {S} < 0.9 ORDER BY sc DESC, id LIMIT 10",
    f"SELECT id, {S} sc FROM g WHERE id NOT IN (SELECT gid FROM tag WHERE t = 't2') ORDER BY sc DESC, id LIMIT 10",
    f"SELECT id, cosine_similarity(f, :q2) z FROM g WHERE {S} > 0.5 ORDER BY z DESC, id LIMIT 9",
    "SELECT * FROM g ORDER BY e <=> :q, id LIMIT 3",
    f"SELECT id, {S} sc FROM g WHERE m LIKE 'm%' ORDER BY sc DESC, id LIMIT 1",
    f"SELECT id FROM g WHERE id < 12 ORDER BY {S} DESC, id LIMIT 50",
    f"SELECT id FROM g WHERE id > 1000 ORDER BY {S} DESC LIMIT 5",
    f"SELECT id FROM g ORDER BY {S} DESC LIMIT 0",
    "SELECT a.id, b.id FROM g a, g b WHERE a.m = b.m AND a.s < 3 AND b.s < 3 "
    "ORDER BY cosine_similarity(b.e, :q) DESC, a.id, b.id LIMIT 15",
]  # fmt: skip

PLAIN = {
    f"SELECT id, {S} sc FROM g ORDER BY s, sc DESC, id LIMIT 10": "the score is not the first key",
    f"SELECT id, {S} sc FROM g ORDER BY sc DESC NULLS FIRST, id LIMIT 10": "NULLS FIRST",
    f"SELECT id, {S} sc FROM g ORDER BY sc DESC, id": "no LIMIT",
    f"SELECT id, {S} sc FROM g ORDER BY sc DESC, id LIMIT 2 + 3": "a computed LIMIT",
    f"SELECT DISTINCT m, {S} sc FROM g ORDER BY sc DESC, m LIMIT 10": "DISTINCT",
    f"SELECT DISTINCT ON (sc) m, {S} sc FROM g ORDER BY sc DESC, m LIMIT 10": "DISTINCT ON",
    f"SELECT m, max({S}) sc, count(*) FROM g GROUP BY m ORDER BY sc DESC, m LIMIT 10": "GROUP BY",
    f"SELECT count(*), max({S}) sc FROM g ORDER BY sc LIMIT 10": "an aggregate",
    f"SELECT id, {S} sc, row_number() OVER (ORDER BY id) rn FROM g ORDER BY sc DESC, id LIMIT 10": "a window",
    f"SELECT id, {S} sc, count(*) OVER () n FROM g ORDER BY sc DESC, id LIMIT 10": "a window over everything",
    f"SELECT id, {S} + cosine_similarity(e, :q2) sc FROM g ORDER BY sc DESC, id LIMIT 10": "a sum of scores",
    f"SELECT id, 1 - {S} sc FROM g ORDER BY sc, id LIMIT 10": "arithmetic on the score",
    f"SELECT id, {S} sc FROM g UNION ALL SELECT id, 0.5 FROM g WHERE s > 38 ORDER BY sc DESC, id LIMIT 10": "a UNION",
    "SELECT id, cosine_similarity(e, f) sc FROM g ORDER BY sc DESC, id LIMIT 10": "two columns",
    f"SELECT id, {S} sc FROM g WHERE random() < 2 ORDER BY sc DESC, id LIMIT 10": "a volatile function",
    f"SELECT id, {S} sc FROM g WHERE id IN (SELECT id FROM g WHERE random() < 2) ORDER BY sc DESC LIMIT 10":
        "a volatile function in a subquery",
    f"SELECT (SELECT id FROM g h WHERE h.m = g.m ORDER BY {S.replace('e,', 'h.e,')} DESC LIMIT 1) FROM g": "correlated",
    f"WITH a AS (SELECT 1 AS x) SELECT * FROM (WITH a AS (SELECT 2 AS y) SELECT id, {S} sc FROM g, a "
    "ORDER BY sc DESC, id LIMIT 3) t": "a WITH name that hides another",
    f"SELECT id FROM (SELECT id, e, s FROM g) t ORDER BY {S} DESC, id LIMIT 10": "a derived column is not stored",
}  # fmt: skip


def parameters(sql: str) -> dict[str, Any]:
    return {"q": Q, "q2": Q2, "k": 12, "o": 4} if ":q" in sql else {}


@pytest.mark.parametrize("sql", FAST)
def test_the_fast_path_gives_the_plain_rows(sql: str, scored: Scored) -> None:
    plan = compile_statement(sql, scored.schema)
    assert plan.fast is not None, "this shape should take the fast path"
    again = Plan.from_json(plan.to_json())
    assert again == plan
    expected = scored.plain(plan, parameters(sql))
    found = scored.fast(plan, parameters(sql))
    assert found is None or found == expected


def test_the_fast_path_is_really_taken_and_scores_fewer_rows(scored: Scored) -> None:
    taken = 0
    for sql in FAST:
        plan = compile_statement(sql, scored.schema)
        taken += scored.fast(plan, parameters(sql)) is not None
    assert taken >= len(FAST) - 5
    plan = compile_statement(FAST[0], scored.schema)
    scored.calls = 0
    scored.plain(plan, parameters(FAST[0]))
    plain, scored.calls = scored.calls, 0
    scored.fast(plan, parameters(FAST[0]))
    assert scored.calls < plain / 4


@pytest.mark.parametrize("sql", PLAIN, ids=list(PLAIN.values()))
def test_a_shape_whose_result_would_change_has_no_fast_path(sql: str, scored: Scored) -> None:
    plan = compile_statement(sql, scored.schema)
    assert plan.fast is None
    scored.plain(plan, parameters(sql))


def test_random_statements_agree_on_both_paths(scored: Scored) -> None:
    rnd = random.Random(7)
    taken = 0
    for _ in range(300):
        where = rnd.choice(["", "WHERE s > :o", "WHERE s < 9 OR m = 'm3'", "WHERE e IS NOT NULL", "WHERE g.id % 3 = 0"])
        score = rnd.choice([S, "e <=> :q", "l2_distance(e, :q)", "e <#> :q", "inner_product(:q, e)"])
        source = rnd.choice(["g", "g AS g", "g JOIN tag t ON t.gid = g.id", "g LEFT JOIN tag t ON t.gid = g.id"])
        extra = ", t.t" if "tag" in source else ""
        direction = rnd.choice(["", " DESC", " ASC", " DESC NULLS LAST"])
        limit = f"LIMIT {rnd.choice([1, 3, 10, 40, 290, 500])}{rnd.choice(['', ' OFFSET 3'])}"
        keys = f"sc{direction}, s, g.id{extra}"
        sql = f"SELECT g.id, g.s{extra}, {score} AS sc FROM {source} {where} ORDER BY {keys} {limit}"
        plan = compile_statement(sql, scored.schema)
        params = {"q": [rnd.choice([0.0, 0.5, 1.0]) for _ in range(3)], "o": rnd.randrange(40)}
        assert plan.fast is not None
        found = scored.fast(plan, params)
        taken += found is not None
        assert found is None or found == scored.plain(plan, params), sql
    assert taken > 150


# -- where scores may stand, and their NULLs -----------------------------------------------------------------------


@pytest.mark.parametrize("order", ["sc DESC", "sc", "sc ASC NULLS LAST", "2 DESC", f"{S} DESC", f"1 - {S} DESC"])
def test_rows_without_a_score_come_last(order: str, scored: Scored) -> None:
    plan = compile_statement(f"SELECT id, {S} AS sc FROM g ORDER BY {order}, id", scored.schema)
    missing = [row[1] is None for row in scored.plain(plan, {"q": Q})]
    assert sum(missing) >= 6 and missing == sorted(missing)


@pytest.mark.parametrize("direction", ["DESC", "ASC"])
def test_nulls_first_is_obeyed(direction: str, scored: Scored) -> None:
    plan = compile_statement(f"SELECT {S} AS sc FROM g ORDER BY sc {direction} NULLS FIRST", scored.schema)
    missing = [row[0] is None for row in scored.plain(plan, {"q": Q})]
    assert missing[0] and missing == sorted(missing, reverse=True)


def test_a_score_through_a_subquery_still_sorts_its_nulls_last(scored: Scored) -> None:
    sql = f"SELECT * FROM (SELECT id, {S} AS sc FROM g) t ORDER BY sc DESC, id"
    missing = [row[1] is None for row in scored.plain(compile_statement(sql, scored.schema), {"q": Q})]
    assert missing == sorted(missing) and any(missing)
    grouped = f"SELECT m, max({S}) AS best FROM g WHERE id % 50 < 3 GROUP BY m ORDER BY best DESC"
    missing = [row[1] is None for row in scored.plain(compile_statement(grouped, scored.schema), {"q": Q})]
    assert missing == sorted(missing)


def test_a_score_stands_in_every_place(scored: Scored) -> None:
    everywhere = [
        f"SELECT count(*) FROM g WHERE {S} > 0.8",
        f"SELECT round(({S})::numeric, 1) r, count(*) FROM g GROUP BY r ORDER BY r",
        f"SELECT avg({S}), stddev({S}) FROM g",
        "SELECT a.id, b.id FROM g a JOIN g b ON cosine_similarity(a.e, b.f) > 0.99 AND a.id < b.id LIMIT 3",
        f"SELECT id, rank() OVER (ORDER BY {S} DESC) FROM g LIMIT 3",
        f"SELECT m FROM g GROUP BY m HAVING max({S}) > 0.99",
        f"SELECT CASE WHEN {S} > 0.5 THEN 'near' ELSE 'far' END FROM g LIMIT 1",
        "SELECT e <=> f, e <-> f, e <#> f, f <-> '[1,2,3]' FROM g LIMIT 1",
        "SELECT '[1,2]'::vector <-> '[3,4]'",
        f"DELETE FROM g WHERE {S} < -2",
        f"UPDATE g SET s = s WHERE {S} < -2",
    ]
    for sql in everywhere:
        plan = compile_statement(sql, scored.schema)
        scored.plain(plan, {"q": Q} if plan.style == "named" else None)


def test_operators_bind_as_in_postgresql(scored: Scored) -> None:
    plan = compile_statement("SELECT id FROM g WHERE e <=> :q < 0.5 ORDER BY 1 - (e <=> :q) DESC, id", scored.schema)
    assert "cosine_distance(e, ?) < 0.5" in plan.sql
    plain = compile_statement("SELECT id FROM g WHERE 1 - cosine_similarity(e, :q) < 0.5", scored.schema)
    assert {r[0] for r in scored.plain(plan, {"q": Q})} == {r[0] for r in scored.plain(plain, {"q": Q})}


def test_a_query_vector_takes_the_columns_type(scored: Scored) -> None:
    plan = compile_statement("SELECT cosine_similarity(:a, e), l2_distance(w, :b) FROM g", scored.schema)
    kinds = {bind.source: (bind.score, str(bind.type)) for bind in plan.binds}
    assert kinds == {"a": (True, "VECTOR(3)"), "b": (True, "VECTOR(4)")}


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELECT cosine_similarity(e, w) FROM g", DimensionError),
        ("SELECT e <-> '[1,2]' FROM g", DimensionError),
        ("SELECT cosine_similarity(m, :q) FROM g", SQLError),
        ("SELECT cosine_similarity(img, :q) FROM g", SQLError),
        ("SELECT cosine_similarity(:a, :b) FROM g", SQLError),
        ("SELECT cosine_similarity(e) FROM g", SQLError),
        ("SELECT e <-> 'near' FROM g", SQLError),
        ("SELECT e + 1 FROM g", SQLError),
        ("SELECT * FROM g WHERE e = f", SQLError),
        ("SELECT * FROM g ORDER BY e", SQLError),
        ("SELECT DISTINCT e FROM g", SQLError),
        ("SELECT max(img) FROM g", SQLError),
        ("SELECT e FROM g GROUP BY e", SQLError),
        ("SELECT e FROM g UNION SELECT f FROM g", SQLError),
        ("UPDATE g SET e = w", SQLError),
        ("UPDATE g SET e = img", SQLError),
        ("UPDATE g SET s = e", SQLError),
        ("SELECT img::text FROM g", SQLError),
    ],
)
def test_vectors_where_they_do_not_fit_are_typed_errors(sql: str, error: type[DeeplakeError], scored: Scored) -> None:
    with pytest.raises(error):
        compile_statement(sql, scored.schema)


def test_a_stream_query_carries_its_rows_keys(scored: Scored) -> None:
    plan = compile_stream("SELECT m FROM g WHERE s > ? ORDER BY id", scored.schema)
    assert scored.plain(plan, [38])[:2] == [("m4", 39), ("m2", 79)]
    joined = compile_stream("SELECT t.t FROM g JOIN tag t ON t.gid = g.id", scored.schema)
    assert joined.sql.startswith("SELECT t.t, g.id AS _dl_key_0, t.id AS _dl_key_1")
    unkeyed = ["SELECT DISTINCT m FROM g", "SELECT count(*) FROM g GROUP BY m", "SELECT 1 UNION SELECT 2", "SELECT 1"]
    for sql in unkeyed:
        assert "_dl_key_" not in compile_stream(sql, scored.schema).sql
    fast = compile_stream(FAST[0], scored.schema).fast
    assert fast is not None and "_dl_key_0" in fast.final_sql
    with pytest.raises(SQLError, match="only a SELECT"):
        compile_stream("DELETE FROM g", scored.schema)
