"""A table's rows at any point, and on a branch, as views and functions stored in the database.

A branch is a schema of views, one per table, that read

    main's rows as of the fork whose key the branch has not taken over   UNION ALL   the branch's overlay

The view of a table is ``_dl_v<branch>_<table>`` in the bookkeeping's schema; the one of the user's name, in the
branch's schema, only selects from it. The two are needed because a first write by psql makes the overlay while its
statement holds the outer view open, and PostgreSQL replaces no view that is open. ``_dl_f<branch>_<table>`` are the
rows that are still main's, ``_dl_s<branch>_<table>`` the keys taken over (with the transaction that did), and
``_dl_b<branch>_<table>`` the overlay.
"""

from __future__ import annotations

from deeplake_loader.postgres.references import FUNCTIONS as _REFERENCES

_ROWS = """
CREATE FUNCTION @b@._dl_seen(alias text, s text, x text, k integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  -- a snapshot leaves its own transaction out of those in progress, so it would pass for a finished one
  SELECT format('CASE WHEN %1$s._dl_xid = %3$L::xid8 THEN %1$s._dl_step <= %4$s '
    'ELSE pg_visible_in_snapshot(%1$s._dl_xid, %2$L::pg_snapshot) END', alias, s, x, k)
$$;

CREATE FUNCTION @b@._dl_after(alias text, s text, x text, k integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT format('%s._dl_xid >= %L::xid8 AND NOT (%s)', alias, pg_snapshot_xmin(s::pg_snapshot)::text,
    @b@._dl_seen(alias, s, x, k))
$$;

CREATE FUNCTION @b@._dl_images(rel regclass, alias text, computed boolean) RETURNS text LANGUAGE sql STABLE
  SET search_path = @path@ AS $$
  SELECT string_agg(CASE WHEN a.attgenerated = '' THEN format('%s.%I', alias, a.attname)
    ELSE format('(%s)::%s AS %I', pg_get_expr(d.adbin, d.adrelid), format_type(a.atttypid, a.atttypmod), a.attname) END,
    ', ' ORDER BY a.attnum)
  FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped AND (computed OR a.attgenerated = '')
$$;

CREATE FUNCTION @b@._dl_asof(tbl text, place text, named text, s text, x text, k integer, computed boolean,
  hidden text) RETURNS text LANGUAGE plpgsql STABLE SET search_path = @path@ AS $$
-- hidden: a condition on a row <row> that is left out where it holds, or NULL
DECLARE
  main regclass := format('%I.%I', @ml@, tbl)::regclass;
  key text[] := @b@._dl_key(main);
  log text := @b@._dl_ours('log', 0, named);
  shown text := coalesce(' AND NOT ' || hidden, '');
BEGIN
  RETURN format('SELECT %s FROM %I.%I t WHERE NOT EXISTS (SELECT 1 FROM %s l WHERE %s AND %s)%s UNION ALL '
    'SELECT %s FROM %s l WHERE %s AND l._dl_op <> ''I'' AND NOT EXISTS (SELECT 1 FROM %s e WHERE %s AND %s '
    'AND e._dl_n < l._dl_n)%s',
    @b@._dl_listed('t.', CASE WHEN computed THEN @b@._dl_every_column(main) ELSE @b@._dl_columns(main) END),
    place, @b@._dl_physical(named), log, @b@._dl_same('l', 't', key), @b@._dl_after('l', s, x, k),
    replace(shown, '<row>', 't'),
    @b@._dl_images(main, 'l', computed), log, @b@._dl_after('l', s, x, k), log, @b@._dl_same('e', 'l', key),
    @b@._dl_after('e', s, x, k), replace(shown, '<row>', 'l'));
END $$;

CREATE FUNCTION @b@._dl_main_part(tbl text, number bigint, s text, x text, k integer, computed boolean, ps text,
  px text, pk integer) RETURNS text LANGUAGE plpgsql STABLE SET search_path = @path@ AS $$
-- main's rows as of (s, x, k) that the branch had not taken over at (ps, px, pk); ps NULL: by now
DECLARE hidden text;
BEGIN
  IF EXISTS (SELECT 1 FROM @b@._dl_overlays o WHERE o.branch = number AND o.table_name = tbl) THEN
    hidden := format('EXISTS (SELECT 1 FROM %s s WHERE %s%s)', @b@._dl_ours('s', number, tbl),
      @b@._dl_same('s', '<row>', @b@._dl_key(format('%I.%I', @ml@, tbl)::regclass)),
      CASE WHEN ps IS NULL THEN '' ELSE format(' AND (%s)', @b@._dl_seen('s', ps, px, pk)) END);
  END IF;
  RETURN @b@._dl_asof(tbl, @ml@, tbl, s, x, k, computed, hidden);
END $$;
"""

_VIEWS = """
CREATE FUNCTION @b@._dl_show(number bigint, tbl text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = @path@ AS $$ BEGIN EXECUTE @b@._dl_shown(number, tbl); END $$;

CREATE FUNCTION @b@._dl_shown(number bigint, tbl text) RETURNS text LANGUAGE plpgsql STABLE
  SET search_path = @path@ AS $show$
-- the statements that make or replace the views of a table on a branch; the outer one with its defaults and trigger
-- only once
DECLARE
  main regclass := format('%I.%I', @ml@, tbl)::regclass;
  listed text := @b@._dl_listed('', @b@._dl_every_column(main));
  outside text;
  view text := @b@._dl_ours('v', number, tbl);
  rows text;
  made text := '';
  s text; x text; k integer;
BEGIN
  SELECT format('%I.%I', b.place, tbl) INTO outside FROM @b@._dl_branches b WHERE b.id = number;
  SELECT c.snapshot, c.xid::text, c.step INTO s, x, k FROM @b@._dl_forks f JOIN @b@._dl_commits c ON c.seq = f.main_seq
    WHERE f.branch = number ORDER BY f.seq DESC LIMIT 1;
  rows := @b@._dl_main_part(tbl, number, s, x, k, true, NULL, NULL, NULL);
  IF EXISTS (SELECT 1 FROM @b@._dl_overlays o WHERE o.branch = number AND o.table_name = tbl) THEN
    made := format('CREATE OR REPLACE VIEW %s AS %s;', @b@._dl_ours('f', number, tbl), rows);
    rows := format('SELECT %s FROM %s UNION ALL SELECT %s FROM %s', listed, @b@._dl_ours('f', number, tbl), listed,
      @b@._dl_ours('b', number, tbl));
  END IF;
  made := made || format('CREATE OR REPLACE VIEW %s AS %s;', view, rows);
  IF to_regclass(outside) IS NOT NULL THEN RETURN made; END IF;
  RETURN made || format('CREATE VIEW %1$s AS SELECT %2$s FROM %3$s; CREATE TRIGGER _dl_write INSTEAD OF INSERT OR '
    'UPDATE OR DELETE ON %1$s FOR EACH ROW EXECUTE FUNCTION @b@._dl_write(%4$s, %5$L);', outside, listed, view,
    number, tbl)
    || coalesce((SELECT format('ALTER TABLE %s %s;', outside, string_agg(format('ALTER COLUMN %I SET DEFAULT %s',
      d.name, d.expression), ', ')) FROM @b@._dl_defaults(main) d HAVING count(*) > 0), '')
    || @b@._dl_grants(main, outside);
END $show$;

CREATE FUNCTION @b@._dl_defaults(rel regclass) RETURNS TABLE (name text, expression text) LANGUAGE sql STABLE
  SET search_path = @path@ AS $$
  SELECT a.attname::text, CASE WHEN a.attidentity <> ''
    THEN format('nextval(%L::regclass)', pg_get_serial_sequence(rel::text, a.attname))
    ELSE pg_get_expr(d.adbin, rel) END
  FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = rel AND d.adnum = a.attnum
  WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    AND (a.attidentity <> '' OR d.adbin IS NOT NULL)
$$;

CREATE FUNCTION @b@._dl_grants(rel regclass, view text) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT coalesce(string_agg(format('GRANT %s ON %s TO %s', g.privilege_type, view,
    CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END), '; '), '')
  FROM pg_class c, aclexplode(c.relacl) g LEFT JOIN pg_roles r ON r.oid = g.grantee
  WHERE c.oid = rel AND g.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE') AND g.grantee <> c.relowner
$$;

CREATE FUNCTION @b@._dl_hide(number bigint, tbl text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = @path@ AS $$ BEGIN
  EXECUTE (SELECT format('DROP VIEW IF EXISTS %I.%I', b.place, tbl) FROM @b@._dl_branches b WHERE b.id = number);
  EXECUTE format('DROP VIEW IF EXISTS %s, %s', @b@._dl_ours('v', number, tbl), @b@._dl_ours('f', number, tbl));
END $$;

CREATE FUNCTION @b@._dl_begin(wanted text, since text, number bigint, came_from bigint, stands_on bigint)
  RETURNS TABLE (id bigint, name text, head bigint, created_at text) LANGUAGE sql AS $$
  -- the rows of a branch: its first node is (number, came_from), and it stands on main's commit stands_on
  WITH b AS (INSERT INTO @b@._dl_branches (name, head, created_at) VALUES (wanted, nextval(pg_get_serial_sequence(
    '@b@._dl_nodes', 'id')), since) RETURNING *),
  n AS (INSERT INTO @b@._dl_nodes (id, branch, seq, parent) SELECT b.head, b.id, number, came_from FROM b),
  f AS (INSERT INTO @b@._dl_forks (branch, seq, main_seq) SELECT b.id, 0, stands_on FROM b)
  SELECT b.id, b.name, b.head, b.created_at FROM b
$$;

CREATE FUNCTION @b@._dl_name_place(number bigint) RETURNS text LANGUAGE plpgsql AS $$
-- gives the branch's schema its name: the branch's own, or with its number where that is taken, reserved or too long
DECLARE wanted text := (SELECT CASE @ml@ WHEN 'public' THEN b.name ELSE @ml@ || '@' || b.name END
  FROM @b@._dl_branches b WHERE b.id = number);
BEGIN
  IF wanted ~* '^(public$|information_schema$|pg_|_dl)' OR octet_length(wanted) > 63
    OR EXISTS (SELECT 1 FROM pg_namespace n WHERE n.nspname = wanted) THEN
    wanted := @b@._dl_physical(wanted || '~' || number);
  END IF;
  UPDATE @b@._dl_branches SET place = wanted WHERE id = number;
  RETURN wanted;
END $$;

CREATE FUNCTION @b@._dl_place(number bigint, tables text[]) RETURNS void LANGUAGE plpgsql
  SET search_path = @path@ AS $$
DECLARE wanted text := @b@._dl_name_place(number);
BEGIN
  EXECUTE format('CREATE SCHEMA %I;', wanted) || (SELECT coalesce(string_agg(format('GRANT USAGE ON SCHEMA %I TO %s',
    wanted, CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END), '; '), '')
    FROM pg_namespace n, aclexplode(n.nspacl) g LEFT JOIN pg_roles r ON r.oid = g.grantee
    WHERE n.nspname = @ml@ AND g.privilege_type = 'USAGE' AND g.grantee <> n.nspowner);
  EXECUTE (SELECT coalesce(string_agg(@b@._dl_shown(number, t), ';'), '') FROM unnest(tables) t);
END $$;
"""

_OVERLAYS = """
CREATE FUNCTION @b@._dl_open(number bigint, tbl text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = @path@ AS $$
-- the branch's own table, made at its first write there
DECLARE lock bigint := hashtextextended(format('%s.%s.%s', @bl@, number, tbl), 0);
BEGIN
  IF EXISTS (SELECT 1 FROM @b@._dl_overlays o WHERE o.branch = number AND o.table_name = tbl) THEN RETURN; END IF;
  IF NOT pg_try_advisory_xact_lock(lock) THEN
    IF current_setting('deeplake.client', true) IS DISTINCT FROM '1' THEN
      -- this statement holds the very view open that the first writer is about to replace: both would wait for ever
      RAISE EXCEPTION 'another transaction makes the branch''s first change of % just now; run the statement again', tbl
        USING ERRCODE = 'serialization_failure';
    END IF;
    PERFORM pg_advisory_xact_lock(lock);
  END IF;
  IF EXISTS (SELECT 1 FROM @b@._dl_overlays o WHERE o.branch = number AND o.table_name = tbl) THEN RETURN; END IF;
  PERFORM @b@._dl_make_overlay(number, tbl);
  PERFORM @b@._dl_watch(number, tbl);
END $$;

CREATE FUNCTION @b@._dl_make_overlay(number bigint, tbl text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = @path@ AS $$
DECLARE
  main regclass := format('%I.%I', @ml@, tbl)::regclass;
  overlay text := @b@._dl_ours('b', number, tbl);
  shadow text := @b@._dl_ours('s', number, tbl);
  key text[] := @b@._dl_key(main);
  name text; expression text;
BEGIN
  EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING IDENTITY)', overlay, main);
  FOR name, expression IN SELECT * FROM @b@._dl_defaults(main) LOOP
    EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s', overlay, name, expression);
  END LOOP;
  EXECUTE format('CREATE TABLE IF NOT EXISTS %s (%s, _dl_xid xid8 NOT NULL DEFAULT pg_current_xact_id(), '
    '_dl_step integer NOT NULL DEFAULT @b@._dl_step(), PRIMARY KEY (%s))', shadow,
    (SELECT string_agg(@b@._dl_declared(main, c, false), ', ') FROM unnest(key) c), @b@._dl_listed('', key));
  INSERT INTO @b@._dl_overlays (branch, table_name) VALUES (number, tbl) ON CONFLICT DO NOTHING;
END $$;

CREATE FUNCTION @b@._dl_remake(number bigint, tbl text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = @path@ AS $$
-- the overlay anew, as main's table is now, with the rows that it had; its views were taken away before
DECLARE
  main regclass := format('%I.%I', @ml@, tbl)::regclass;
  former text := @b@._dl_ours('o', number, tbl);
  kept text[];
BEGIN
  EXECUTE format('ALTER TABLE %s RENAME TO %I', @b@._dl_ours('b', number, tbl),
    @b@._dl_physical('_dl_o' || number || '_' || tbl));
  PERFORM @b@._dl_make_overlay(number, tbl);
  SELECT array_agg(c) INTO kept FROM unnest(@b@._dl_columns(main)) c
    WHERE c = ANY (@b@._dl_columns(former::regclass));
  EXECUTE format('INSERT INTO %s (%s) SELECT %s FROM %s', @b@._dl_ours('b', number, tbl), @b@._dl_listed('', kept),
    (SELECT string_agg(format('%I::%s', c, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY n)
      FROM unnest(kept) WITH ORDINALITY u (c, n) JOIN pg_attribute a ON a.attrelid = main AND a.attname = c), former);
  EXECUTE format('DROP TABLE %s', former);
END $$;

CREATE FUNCTION @b@._dl_watch(number bigint, tbl text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = @path@ AS $$
-- the overlay's undo log, its views, and the triggers that stand in for constraints over views
BEGIN
  PERFORM @b@._dl_follow(@bl@, '_dl_b' || number || '_' || tbl, number);
  EXECUTE format('REVOKE EXECUTE ON FUNCTION %s() FROM PUBLIC',
    @b@._dl_ours('log', 0, '_dl_b' || number || '_' || tbl));
  PERFORM @b@._dl_show(number, tbl);
  PERFORM @b@._dl_watch_uniques(number, tbl);
  PERFORM @b@._dl_watch_references(number, tbl);
END $$;

CREATE FUNCTION @b@._dl_take(number bigint, tbl text, chosen text) RETURNS text LANGUAGE sql STABLE
  SET search_path = @path@ AS $$
  -- a statement that takes over main's rows: chosen is a SELECT of keys that are free. The keys come as an array, which
  -- reaches the indexes below the view; a join would read the whole table
  SELECT format('WITH k AS (INSERT INTO %1$s (%2$s) %3$s ON CONFLICT DO NOTHING RETURNING %2$s) '
    'INSERT INTO %4$s (%5$s) SELECT %6$s FROM %7$s f WHERE f.%9$I = ANY (ARRAY(SELECT %9$I FROM k))%8$s',
    @b@._dl_ours('s', number, tbl), @b@._dl_listed('', @b@._dl_key(r)), chosen, @b@._dl_ours('b', number, tbl),
    @b@._dl_listed('', @b@._dl_columns(r)), @b@._dl_listed('f.', @b@._dl_columns(r)), @b@._dl_ours('f', number, tbl),
    CASE WHEN array_length(@b@._dl_key(r), 1) = 1 THEN ''
      ELSE format(' AND EXISTS (SELECT 1 FROM k WHERE %s)', @b@._dl_same('f', 'k', @b@._dl_key(r))) END,
    (@b@._dl_key(r))[1])
  FROM (SELECT format('%I.%I', @ml@, tbl)::regclass) u (r)
$$;

CREATE FUNCTION @b@._dl_clash(main regclass, index regclass) RETURNS text LANGUAGE sql STABLE
  SET search_path = @path@ AS $$
  -- that row x has the terms of row $1 in a unique index
  SELECT string_agg(format(CASE WHEN i.indnullsnotdistinct THEN '%1$s IS NOT DISTINCT FROM %2$s' ELSE '%1$s = %2$s' END,
    CASE WHEN i.indkey[n - 1] = 0 THEN '(' || t.term || ')' ELSE 'x.' || t.term END,
    CASE WHEN i.indkey[n - 1] = 0 THEN format('(SELECT %s FROM (SELECT ($1).*) y)', t.term)
      ELSE '($1).' || t.term END), ' AND ' ORDER BY n)
    || CASE WHEN i.indpred IS NULL THEN '' ELSE format(' AND (%1$s) AND (SELECT %1$s FROM (SELECT ($1).*) y)',
      pg_get_expr(i.indpred, i.indrelid)) END
  FROM pg_index i, generate_series(1, i.indnkeyatts) n, pg_get_indexdef(i.indexrelid, n, true) t (term)
  WHERE i.indexrelid = index GROUP BY i.indpred, i.indrelid
$$;

CREATE FUNCTION @b@._dl_take_given(number bigint, tbl text, given text) RETURNS void LANGUAGE plpgsql
  SET search_path = @path@ AS $$
-- takes over main's rows that an upsert's rows collide with: it may not change a row that came while it ran
DECLARE main regclass := format('%I.%I', @ml@, tbl)::regclass;
BEGIN
  EXECUTE (SELECT @b@._dl_take(number, tbl, string_agg(format('SELECT %s FROM %s x JOIN '
    '(SELECT _dl_r FROM pg_temp.%I _dl_r) u ON %s',
    @b@._dl_listed('x.', @b@._dl_key(main)), @b@._dl_ours('f', number, tbl), given,
    replace(@b@._dl_clash(main, i.indexrelid), '($1)', '(_dl_r)')), ' UNION '))
    FROM pg_index i WHERE i.indrelid = main AND i.indisunique);
END $$;

CREATE FUNCTION @b@._dl_watch_uniques(number bigint, tbl text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = @path@ AS $$
-- before a row enters the overlay, main's rows that it could collide with are taken over: the real constraint decides
DECLARE
  main regclass := format('%I.%I', @ml@, tbl)::regclass;
  key text[] := @b@._dl_key(main);
  chosen text;
  bound bigint;
  moved text;
  quiet text := 'current_setting(''deeplake.copying'', true) IS DISTINCT FROM ''1''';
BEGIN
  SELECT string_agg(format('SELECT %s FROM %s x WHERE %s', @b@._dl_listed('x.', key), @b@._dl_ours('f', number, tbl),
    @b@._dl_clash(main, i.indexrelid)), ' UNION ') INTO chosen
    FROM pg_index i WHERE i.indrelid = main AND i.indisunique;
  EXECUTE format('CREATE OR REPLACE TRIGGER _dl_unique_insert BEFORE INSERT ON %s FOR EACH ROW WHEN (%s%s) '
    'EXECUTE FUNCTION @b@._dl_make_room(%L)', @b@._dl_ours('b', number, tbl), quiet,
    @b@._dl_new_keys(main, tbl), @b@._dl_take(number, tbl, chosen));
  SELECT string_agg(format('NEW.%1$I IS DISTINCT FROM OLD.%1$I', a.attname), ' OR ') INTO moved
    FROM pg_attribute a WHERE a.attrelid = main AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    AND EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = main AND i.indisunique
      AND (a.attnum = ANY (i.indkey) OR 0 = ANY (i.indkey) OR i.indpred IS NOT NULL));
  EXECUTE format('CREATE OR REPLACE TRIGGER _dl_unique_update BEFORE UPDATE ON %s FOR EACH ROW WHEN (%s) '
    'EXECUTE FUNCTION @b@._dl_make_room(%L)', @b@._dl_ours('b', number, tbl), moved, @b@._dl_take(number, tbl, chosen));
END $$;

CREATE FUNCTION @b@._dl_new_keys(main regclass, tbl text) RETURNS text LANGUAGE plpgsql STABLE
  SET search_path = @path@ AS $$
-- a number above every key that main ever had collides with none, where the key is the only unique value
DECLARE key text[] := @b@._dl_key(main); highest bigint;
BEGIN
  IF array_length(key, 1) > 1 OR (SELECT count(*) FROM pg_index WHERE indrelid = main AND indisunique) > 1
    OR NOT EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = main AND attname = key[1]
      AND atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)) THEN
    RETURN '';
  END IF;
  EXECUTE format('SELECT greatest((SELECT max(%1$I) FROM %2$s), (SELECT max(%1$I) FROM %3$s), 0)', key[1], main,
    @b@._dl_ours('log', 0, tbl)) INTO highest;
  RETURN format(' AND NEW.%I <= %s', key[1], highest);
END $$;

CREATE FUNCTION @b@._dl_make_room() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = @path@ AS $$
BEGIN
  PERFORM set_config('deeplake.copying', '1', true);  -- what is taken over needs no looking after
  EXECUTE TG_ARGV[0] USING NEW;
  PERFORM set_config('deeplake.copying', '', true);
  RETURN NEW;
END $$;

CREATE FUNCTION @b@._dl_write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = @path@ AS $$
-- serves writes to a branch's view: the row is taken over and locked, and has to be what the statement saw
DECLARE
  number bigint := TG_ARGV[0];
  tbl text := TG_ARGV[1];
  main regclass := format('%I.%I', @ml@, tbl)::regclass;
  overlay text := @b@._dl_ours('b', number, tbl);
  key text[] := @b@._dl_key(main);
  stored text[] := @b@._dl_columns(main);
  listed text := @b@._dl_listed('', @b@._dl_every_column(main));
  same boolean; ours boolean; changed bigint;
BEGIN
  PERFORM @b@._dl_open(number, tbl);
  IF TG_OP = 'INSERT' THEN
    EXECUTE format('INSERT INTO %s (%s) SELECT %s RETURNING %s', overlay, @b@._dl_listed('', stored),
      @b@._dl_listed('($1).', stored), listed) INTO NEW USING NEW;
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed = 0 THEN RETURN NULL; END IF;
    RETURN NEW;
  END IF;
  PERFORM set_config('deeplake.copying', '1', true);
  EXECUTE @b@._dl_take(number, tbl, format('SELECT %s FROM %s x WHERE %s', @b@._dl_listed('x.', key),
    @b@._dl_ours('f', number, tbl), @b@._dl_same('x', '($1)', key))) USING OLD;
  PERFORM set_config('deeplake.copying', '', true);
  EXECUTE format('SELECT record_image_eq(ROW(%s), ROW(%s)), EXISTS (SELECT 1 FROM %s l WHERE %s AND l._dl_xid = '
    'pg_current_xact_id()) FROM %s o WHERE %s FOR UPDATE', @b@._dl_listed('o.', stored),
    @b@._dl_listed('($1).', stored), @b@._dl_ours('log', 0, '_dl_b' || number || '_' || tbl),
    @b@._dl_same('l', 'o', key), overlay, @b@._dl_same('o', '($1)', key)) INTO same, ours USING OLD;
  IF same IS NULL OR (NOT same AND ours) THEN
    RETURN NULL;  -- deleted since, or changed before by this very statement: a table skips such a row, too
  ELSIF NOT same THEN
    RAISE EXCEPTION 'a row of % was changed by another transaction after this statement read it; run it again', tbl
      USING ERRCODE = 'serialization_failure';
  END IF;
  IF TG_OP = 'DELETE' THEN
    EXECUTE format('DELETE FROM %s o WHERE %s', overlay, @b@._dl_same('o', '($1)', key)) USING OLD;
    RETURN OLD;
  END IF;
  EXECUTE format('UPDATE %s o SET %s WHERE %s RETURNING %s', overlay,
    (SELECT string_agg(format('%1$I = ($2).%1$I', c), ', ') FROM unnest(stored) c), @b@._dl_same('o', '($1)', key),
    @b@._dl_listed('o.', @b@._dl_every_column(main))) INTO NEW USING OLD, NEW;
  RETURN NEW;
END $$;

CREATE FUNCTION @b@._dl_close(number bigint, tbl text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = @path@ AS $$
-- forgets a branch's own rows of a table; its views are gone already, or are made anew afterwards
BEGIN
  EXECUTE format('DROP VIEW IF EXISTS %s', @b@._dl_ours('f', number, tbl));
  EXECUTE format('DROP TABLE IF EXISTS %s, %s', @b@._dl_ours('b', number, tbl), @b@._dl_ours('s', number, tbl));
  PERFORM @b@._dl_unfollow('_dl_b' || number || '_' || tbl);
  DELETE FROM @b@._dl_overlays o WHERE o.branch = number AND o.table_name = tbl;
END $$;
"""

_RIGHTS = """
DO $$ DECLARE name regprocedure; BEGIN
-- what runs with the owner's rights is for triggers and for those who may write: a reader could call it, or make it the
-- trigger of a temporary table of its own
  FOR name IN SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = @bl@ AND p.prosecdef LOOP
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', name);
  END LOOP;
END $$;
"""

FUNCTIONS = (_ROWS, _VIEWS, _OVERLAYS, _REFERENCES, _RIGHTS)
