"""The functions and triggers, stored in the database, that log every change, whoever makes it.

One undo log per real table (main's own, or a branch's overlay), in the bookkeeping's schema:

    _dl_log_<table>(_dl_n bigint, _dl_xid xid8, _dl_step integer, _dl_op text, <the table's stored columns>)

``_dl_op`` is I (the key did not exist before: only the key is kept), U or D (the whole row as it was). ``_dl_xid`` is
the transaction that made the change and ``_dl_step`` how many commits that transaction had closed before. A point in
history is (snapshot, xid, step): a change belongs to it where the snapshot sees its transaction, or where it is that
transaction itself, up to the step. So a fork waits for no writer, and no writer for a fork: what is open when the
snapshot is taken stays outside of it for ever. The row locks order the changes of one row as ``_dl_n`` does.

Statement triggers with transition tables log twice as fast as row triggers do. Only the first image per key,
transaction and step is kept. A statement is logged at its end, so what its row triggers changed has been logged before
it. Where a statement began, its BEFORE trigger remembers (how far the log was); what others logged of its keys since
then came after its own change of them and is taken back. For a key that the statement brought that is so only if the
image is the row that it brought: a trigger may also have deleted an older row to make room (one with the very same
values passes for the older one where the key is still there, unless the statement brought it twice). The actions of
foreign keys change a row more than once in one transition table, where a row's later state is no image.

A statement of another tool's transaction makes that transaction a commit of its own: its row is written with the first
change, and gets its number and snapshot when the transaction ends (a deferred trigger); so numbers never run against
what is seen.

In the texts ``@b@`` stands for the bookkeeping's schema, ``@m@`` for main's, ``@path@`` for the functions' search path.
"""

from __future__ import annotations

from collections.abc import Iterator

from deeplake_loader.types import quote_identifier

CLIENT = "deeplake.client"
"""The setting by which a connection of ours is known: it numbers its commits itself."""

_COMMITS = """
CREATE FUNCTION @b@._dl_step() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT coalesce(nullif(current_setting('deeplake.step', true), ''), '0')::integer
$$;
ALTER TABLE @b@._dl_commits ALTER COLUMN snapshot SET DEFAULT pg_current_snapshot()::text,
  ALTER COLUMN xid SET DEFAULT pg_current_xact_id(), ADD COLUMN step integer NOT NULL DEFAULT @b@._dl_step();
INSERT INTO @b@._dl_commits (seq, id, created_at, branch, snapshot, xid, step)
  VALUES (0, '', '', 0, '1:1:', '0', 0);
CREATE INDEX _dl_commits_by_xid ON @b@._dl_commits (xid);
ALTER TABLE @b@._dl_branches ADD COLUMN place TEXT;
ALTER TABLE @b@._dl_forks ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  ADD COLUMN step integer NOT NULL DEFAULT @b@._dl_step();

CREATE FUNCTION @b@._dl_next_step() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM set_config('deeplake.step', (NEW.step + 1)::text, true);
  RETURN NULL;
END $$;
CREATE TRIGGER _dl_next_step AFTER INSERT ON @b@._dl_commits FOR EACH ROW
  WHEN (current_setting('deeplake.client', true) = '1') EXECUTE FUNCTION @b@._dl_next_step();

CREATE FUNCTION @b@._dl_close_commit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = @path@ AS $$
BEGIN
  UPDATE @b@._dl_commits SET seq = nextval(pg_get_serial_sequence(format('%I._dl_commits', @bl@), 'seq')),
    snapshot = pg_current_snapshot()::text WHERE seq = NEW.seq;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER _dl_close_commit AFTER INSERT ON @b@._dl_commits DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (current_setting('deeplake.client', true) IS DISTINCT FROM '1')
  EXECUTE FUNCTION @b@._dl_close_commit();

CREATE FUNCTION @b@._dl_note(number bigint) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
  IF current_setting('deeplake.client', true) = '1' OR EXISTS (
    SELECT 1 FROM @b@._dl_commits c WHERE c.xid = pg_current_xact_id() AND c.branch = number) THEN
    RETURN;
  END IF;
  INSERT INTO @b@._dl_commits (id, created_at, author, branch) VALUES (
    replace(gen_random_uuid()::text, '-', ''),
    to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), session_user, number);
END $$;
"""

_SHAPES = """
CREATE FUNCTION @b@._dl_physical(name text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE head text := name;
BEGIN
  IF octet_length(name) <= 63 THEN RETURN name; END IF;
  head := left(name, 50);
  WHILE octet_length(head) > 50 LOOP head := left(head, -1); END LOOP;
  RETURN head || '~' || left(encode(sha256(convert_to(name, 'UTF8')), 'hex'), 12);
END $$;

CREATE FUNCTION @b@._dl_ours(kind text, number bigint, name text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT format('%I.%I', @bl@, @b@._dl_physical(
    CASE kind WHEN 'log' THEN '_dl_log_' || name ELSE '_dl_' || kind || number || '_' || name END))
$$;

CREATE FUNCTION @b@._dl_key(rel regclass) RETURNS text[] LANGUAGE sql STABLE AS $$
  SELECT array_agg(a.attname::text ORDER BY k.place) FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k (number, place)
  JOIN pg_attribute a ON a.attrelid = rel AND a.attnum = k.number
  WHERE i.indrelid = rel AND i.indisprimary AND k.place <= i.indnkeyatts
$$;

CREATE FUNCTION @b@._dl_names(rel oid, numbers smallint[]) RETURNS text[] LANGUAGE sql STABLE AS $$
  SELECT array_agg(a.attname::text ORDER BY u.n) FROM unnest(numbers) WITH ORDINALITY u (number, n)
  JOIN pg_attribute a ON a.attrelid = rel AND a.attnum = u.number
$$;

CREATE FUNCTION @b@._dl_same(a text, b text, columns text[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT string_agg(format('%s.%I = %s.%I', a, c, b, c), ' AND ') FROM unnest(columns) c
$$;

CREATE FUNCTION @b@._dl_listed(alias text, columns text[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT string_agg(alias || quote_ident(c), ', ' ORDER BY n) FROM unnest(columns) WITH ORDINALITY u (c, n)
$$;

CREATE FUNCTION @b@._dl_columns(rel regclass) RETURNS text[] LANGUAGE sql STABLE AS $$
  SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute
  WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
$$;

CREATE FUNCTION @b@._dl_every_column(rel regclass) RETURNS text[] LANGUAGE sql STABLE AS $$
  SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute
  WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped
$$;

CREATE FUNCTION @b@._dl_declared(rel regclass, name text, defaults boolean) RETURNS text LANGUAGE sql STABLE
  SET search_path = @path@ AS $$
  SELECT format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
    || CASE WHEN a.attcollation <> t.typcollation AND a.attcollation <> 0
       THEN format(' COLLATE %I.%I', n.nspname, c.collname) ELSE '' END
    || CASE WHEN defaults AND d.adbin IS NOT NULL AND a.attgenerated = '' AND a.attmissingval IS NOT NULL
       THEN ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) ELSE '' END
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_collation c ON c.oid = a.attcollation LEFT JOIN pg_namespace n ON n.oid = c.collnamespace
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE a.attrelid = rel AND a.attname = name
$$;
"""

_LOG = """
CREATE FUNCTION @b@._dl_follow(place text, followed text, number bigint) RETURNS void LANGUAGE plpgsql
  SET search_path = @path@ AS $follow$
DECLARE
  rel regclass := format('%I.%I', place, @b@._dl_physical(followed))::regclass;
  log text := @b@._dl_ours('log', 0, followed);
  key text[] := @b@._dl_key(rel);
  stored text := @b@._dl_listed('', @b@._dl_columns(rel));
  logged text;
  meant text;
  name text;
BEGIN
  IF key IS NULL THEN
    RAISE EXCEPTION 'table % has no primary key, so its rows cannot be followed; declare one', rel
      USING ERRCODE = 'invalid_table_definition';
  END IF;
  IF to_regclass(log) IS NULL THEN
    EXECUTE format('CREATE TABLE %s (_dl_n bigint GENERATED ALWAYS AS IDENTITY, _dl_xid xid8 NOT NULL '
      'DEFAULT pg_current_xact_id(), _dl_step integer NOT NULL DEFAULT @b@._dl_step(), _dl_op text NOT NULL, %s)', log,
      (SELECT string_agg(@b@._dl_declared(rel, c, false), ', ') FROM unnest(@b@._dl_columns(rel)) c));
    EXECUTE format('CREATE INDEX ON %s (%s, _dl_n)', log, @b@._dl_listed('', key));
    EXECUTE format('CREATE INDEX ON %s (_dl_xid)', log);
  ELSE
    FOREACH name IN ARRAY @b@._dl_columns(rel) LOOP
      IF NOT name = ANY (@b@._dl_columns(log::regclass)) THEN
        EXECUTE format('ALTER TABLE %s ADD COLUMN %s', log, @b@._dl_declared(rel, name, true));
      ELSIF format_type((SELECT atttypid FROM pg_attribute WHERE attrelid = rel AND attname = name), NULL)
        <> format_type((SELECT atttypid FROM pg_attribute WHERE attrelid = log::regclass AND attname = name), NULL) THEN
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I TYPE %s USING %I::%s', log, name,
          split_part(@b@._dl_declared(rel, name, false), quote_ident(name) || ' ', 2), name,
          split_part(@b@._dl_declared(rel, name, false), quote_ident(name) || ' ', 2));
      END IF;
    END LOOP;
    FOREACH name IN ARRAY @b@._dl_columns(log::regclass) LOOP
      IF NOT name = ANY (@b@._dl_columns(rel)) AND left(name, 4) <> '_dl_' THEN
        EXECUTE format('ALTER TABLE %s DROP COLUMN %I', log, name);
      END IF;
    END LOOP;
  END IF;
  logged := format('EXISTS (SELECT 1 FROM %s l WHERE %s AND l._dl_xid = pg_current_xact_id() AND l._dl_step = _dl_k)',
    log, @b@._dl_same('l', 'r', key));
  meant := format('%s AND l._dl_xid = pg_current_xact_id() AND l._dl_step = _dl_k AND l._dl_n > _dl_start',
    @b@._dl_same('l', 'r', key));
  EXECUTE format($make$
    CREATE OR REPLACE FUNCTION %1$s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = @path@ AS $f$
    #variable_conflict use_column
    DECLARE
      _dl_k integer := @b@._dl_step();
      _dl_open text := 'deeplake.open' || TG_RELID;
      _dl_starts text := coalesce(current_setting(_dl_open, true), '');
      _dl_last bigint := (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM %8$s);
      _dl_start bigint;
      _dl_careful boolean;
    BEGIN
      IF TG_WHEN = 'BEFORE' AND TG_OP <> 'TRUNCATE' THEN
        PERFORM set_config(_dl_open, _dl_last || ',' || _dl_starts, true);
        RETURN NULL;
      END IF;
      PERFORM @b@._dl_note(%2$s);
      IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO %1$s (_dl_step, _dl_op, %4$s) SELECT _dl_k, 'D', %4$s FROM %7$s r WHERE NOT %5$s;
        RETURN NULL;
      END IF;
      _dl_start := coalesce(nullif(split_part(_dl_starts, ',', 1), '')::bigint, _dl_last);
      PERFORM set_config(_dl_open, substr(_dl_starts, strpos(_dl_starts, ',') + 1), true);
      _dl_careful := _dl_last > _dl_start;
      IF _dl_careful AND TG_OP <> 'INSERT' THEN
        DELETE FROM %1$s l USING _dl_old r WHERE %9$s;
      END IF;
      IF _dl_careful AND TG_OP <> 'DELETE' THEN
        DELETE FROM %1$s l USING _dl_new r WHERE %9$s AND record_image_eq(ROW(%10$s), ROW(%11$s)) AND (l._dl_op = 'U'
          OR l._dl_op = 'D' AND (NOT EXISTS (SELECT 1 FROM %7$s t WHERE %12$s)
            OR (SELECT count(*) > 1 FROM _dl_new t WHERE %12$s)));
      END IF;
      IF TG_OP = 'DELETE' THEN
        INSERT INTO %1$s (_dl_step, _dl_op, %4$s) SELECT _dl_k, 'D', %4$s FROM _dl_old r WHERE NOT %5$s;
      ELSIF TG_OP = 'INSERT' THEN
        IF _dl_careful THEN
          INSERT INTO %1$s (_dl_step, _dl_op, %3$s) SELECT _dl_k, 'I', %3$s FROM _dl_new r WHERE NOT %5$s;
        ELSE
          INSERT INTO %1$s (_dl_step, _dl_op, %3$s) SELECT _dl_k, 'I', %3$s FROM _dl_new;
        END IF;
      ELSIF EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conrelid = TG_RELID AND c.contype = 'f'
        AND (c.confupdtype IN ('c', 'n', 'd') OR c.confdeltype IN ('n', 'd'))) THEN
        INSERT INTO %1$s (_dl_step, _dl_op, %4$s)
          WITH o AS (SELECT row_number() OVER () _dl_i, * FROM _dl_old),
          n AS (SELECT row_number() OVER () _dl_i, * FROM _dl_new)
          SELECT _dl_k, 'U', %4$s FROM (SELECT DISTINCT ON (%3$s) * FROM o ORDER BY %3$s, _dl_i) r
          WHERE NOT %5$s AND NOT EXISTS (SELECT 1 FROM n l JOIN o p ON p._dl_i = l._dl_i WHERE l._dl_i < r._dl_i
            AND %13$s AND record_image_eq(ROW(%10$s), ROW(%11$s)) AND NOT (%14$s));
        INSERT INTO %1$s (_dl_step, _dl_op, %3$s) SELECT DISTINCT _dl_k, 'I', %3$s FROM _dl_new r WHERE NOT %5$s;
      ELSE
        INSERT INTO %1$s (_dl_step, _dl_op, %4$s) SELECT _dl_k, 'U', %4$s FROM _dl_old r WHERE NOT %5$s;
        INSERT INTO %1$s (_dl_step, _dl_op, %3$s) SELECT _dl_k, 'I', %3$s FROM _dl_new r
          WHERE NOT EXISTS (SELECT 1 FROM _dl_old o WHERE %6$s) AND NOT %5$s;
      END IF;
      RETURN NULL;
    END $f$ $make$, log, number, @b@._dl_listed('', key), stored, logged, @b@._dl_same('o', 'r', key), rel,
    pg_get_serial_sequence(log, '_dl_n'), meant, @b@._dl_listed('l.', @b@._dl_columns(rel)),
    @b@._dl_listed('r.', @b@._dl_columns(rel)), @b@._dl_same('t', 'r', key), @b@._dl_same('l', 'r', key),
    @b@._dl_same('p', 'l', key));
  EXECUTE format('CREATE OR REPLACE TRIGGER _dl_log_begin BEFORE INSERT OR UPDATE OR DELETE ON %s '
    'FOR EACH STATEMENT EXECUTE FUNCTION %s()', rel, log);
  EXECUTE format('CREATE OR REPLACE TRIGGER _dl_log_insert AFTER INSERT ON %s REFERENCING NEW TABLE AS _dl_new '
    'FOR EACH STATEMENT EXECUTE FUNCTION %s()', rel, log);
  EXECUTE format('CREATE OR REPLACE TRIGGER _dl_log_update AFTER UPDATE ON %s REFERENCING OLD TABLE AS _dl_old '
    'NEW TABLE AS _dl_new FOR EACH STATEMENT EXECUTE FUNCTION %s()', rel, log);
  EXECUTE format('CREATE OR REPLACE TRIGGER _dl_log_delete AFTER DELETE ON %s REFERENCING OLD TABLE AS _dl_old '
    'FOR EACH STATEMENT EXECUTE FUNCTION %s()', rel, log);
  EXECUTE format('CREATE OR REPLACE TRIGGER _dl_log_truncate BEFORE TRUNCATE ON %s '
    'FOR EACH STATEMENT EXECUTE FUNCTION %s()', rel, log);
END $follow$;

CREATE FUNCTION @b@._dl_unfollow(followed text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
  EXECUTE format('DROP FUNCTION IF EXISTS %s() CASCADE', @b@._dl_ours('log', 0, followed));
  EXECUTE format('DROP TABLE IF EXISTS %s', @b@._dl_ours('log', 0, followed));
END $$;
"""


def filled(text: str, *, main: str, bookkeeping: str) -> str:
    """A text of ours with its schemas filled in."""
    path = ", ".join(map(quote_identifier, ("pg_catalog", main, "public", bookkeeping, "pg_temp")))
    for token, found in {
        "@b@": quote_identifier(bookkeeping), "@m@": quote_identifier(main), "@path@": path,
        "@bl@": _literal(bookkeeping), "@ml@": _literal(main),
    }.items():  # fmt: skip
        text = text.replace(token, found)
    return text


def statements(*, main: str, bookkeeping: str) -> Iterator[str]:
    """What makes the store's functions and triggers, to be run once when its bookkeeping is made."""
    from deeplake_loader.postgres.states import FUNCTIONS as states

    for text in (_COMMITS, _SHAPES, _LOG, *states):
        yield filled(text, main=main, bookkeeping=bookkeeping)


def _literal(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"
