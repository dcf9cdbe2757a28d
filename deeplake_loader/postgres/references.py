"""Foreign keys on a branch, whose rows lie partly on main and partly in overlays, where no constraint can see them.

Triggers on the overlays look through the branch's views: a row that was brought or changed needs its parent on the
branch (at once, or at the commit where the key is deferred), and when a referenced value is gone, its children are
looked after by writing to the branch's own view, as psql would: so an action reaches rows that are still main's, and
the actions that follow from it.

Two transactions that each do one half, one a child and one its parent, see nothing of each other. So whoever brings a
child holds a shared lock on the key's name and branch until its commit, and whoever takes a parent away an exclusive
one.
"""

from __future__ import annotations

_WATCH = """
CREATE FUNCTION @b@._dl_watch_references(number bigint, tbl text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = @path@ AS $$
DECLARE
  main regclass := format('%I.%I', @ml@, tbl)::regclass;
  overlay text := @b@._dl_ours('b', number, tbl);
  r record;
  trigger text;
BEGIN
  FOR r IN SELECT tgname FROM pg_trigger WHERE tgrelid = overlay::regclass AND tgname LIKE '\\_dl\\_fk%' LOOP
    EXECUTE format('DROP TRIGGER %I ON %s', r.tgname, overlay);
  END LOOP;
  FOR r IN SELECT * FROM @b@._dl_keys(number) k WHERE main IN (k.child, k.parent) ORDER BY k.id LOOP
    IF r.child = main THEN
      EXECUTE format('CREATE CONSTRAINT TRIGGER %I AFTER INSERT OR UPDATE OF %s ON %s %s FOR EACH ROW WHEN (%s AND '
        'current_setting(''deeplake.copying'', true) IS DISTINCT FROM ''1'') EXECUTE FUNCTION '
        '@b@._dl_needs_parent(%s, %L, %L, %L)', '_dl_fk_child_' || r.id, @b@._dl_listed('', r.columns), overlay, r.late,
        (SELECT string_agg(format('NEW.%I IS NOT NULL', c), ' AND ') FROM unnest(r.columns) c), number, r.name, tbl,
        format('SELECT EXISTS (SELECT 1 FROM %s o WHERE %s AND %s) AND NOT EXISTS (SELECT 1 FROM %s p WHERE %s)',
          overlay, @b@._dl_same('o', '($1)', @b@._dl_key(main)), @b@._dl_same('o', '($1)', r.columns),
          r.parents, @b@._dl_pairs('p', r.referenced, '($1)', r.columns)));
    END IF;
    IF r.parent = main THEN
      trigger := 'CREATE CONSTRAINT TRIGGER %I AFTER %s ON %s %s FOR EACH ROW WHEN (%s) EXECUTE FUNCTION '
        '@b@._dl_parent_gone(%s, %L, %L, %L, %L, %L)';
      EXECUTE format(trigger, '_dl_fk_gone_' || r.id, 'DELETE', overlay, CASE WHEN r.on_delete = 'a' THEN r.late END,
        'true', number, r.name, r.child_name, r.still, r.held, @b@._dl_action(r.on_delete, 'D', r.child_name, r.child,
          r.columns, r.referenced));
      EXECUTE format(trigger, '_dl_fk_moved_' || r.id, 'UPDATE OF ' || @b@._dl_listed('', r.referenced), overlay,
        CASE WHEN r.on_update = 'a' THEN r.late END,
        (SELECT string_agg(format('NEW.%1$I IS DISTINCT FROM OLD.%1$I', c), ' OR ') FROM unnest(r.referenced) c),
        number, r.name, r.child_name, r.still, r.held, @b@._dl_action(r.on_update, 'U', r.child_name, r.child,
          r.columns, r.referenced));
    END IF;
  END LOOP;
END $$;

CREATE FUNCTION @b@._dl_pairs(a text, first text[], b text, second text[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT string_agg(format('%s.%I = %s.%I', a, x, b, y), ' AND ') FROM unnest(first, second) u (x, y)
$$;

CREATE FUNCTION @b@._dl_keys(number bigint) RETURNS TABLE (id text, name text, child regclass, child_name text,
  parent regclass, columns text[], referenced text[], on_delete "char", on_update "char", late text, parents text,
  still text, held text) LANGUAGE sql STABLE SET search_path = @path@ AS $$
  SELECT k.oid::text, k.conname::text, k.conrelid::regclass, c.relname::text, k.confrelid::regclass, n.a, n.b,
    k.confdeltype, k.confupdtype,
    CASE WHEN k.condeferred THEN 'DEFERRABLE INITIALLY DEFERRED' WHEN k.condeferrable THEN 'DEFERRABLE' ELSE '' END,
    @b@._dl_ours('v', number, p.relname::text),
    format('SELECT EXISTS (SELECT 1 FROM %s p WHERE %s)', @b@._dl_ours('v', number, p.relname::text),
      @b@._dl_same('p', '($1)', n.b)),
    format('SELECT EXISTS (SELECT 1 FROM %s c WHERE %s)', @b@._dl_ours('v', number, c.relname::text),
      @b@._dl_pairs('c', n.a, '($1)', n.b))
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class p ON p.oid = k.confrelid
  JOIN pg_namespace s ON s.oid = c.relnamespace, LATERAL (SELECT
    array_agg(x.attname::text ORDER BY u.n) a, array_agg(y.attname::text ORDER BY u.n) b
    FROM unnest(k.conkey, k.confkey) WITH ORDINALITY u (here, there, n)
    JOIN pg_attribute x ON x.attrelid = k.conrelid AND x.attnum = u.here
    JOIN pg_attribute y ON y.attrelid = k.confrelid AND y.attnum = u.there) n
  WHERE k.contype = 'f' AND s.nspname = @ml@ AND p.relnamespace = c.relnamespace
$$;

CREATE FUNCTION @b@._dl_action(kind "char", event text, tbl text, child regclass, columns text[], referenced text[])
  RETURNS text LANGUAGE sql STABLE SET search_path = @path@ AS $$
  -- what is done to the children, over the branch's view; empty where nothing may be left to do
  SELECT CASE
    WHEN kind IN ('a', 'r') THEN ''
    WHEN kind = 'c' AND event = 'D' THEN format('DELETE FROM <branch>.%I c WHERE %s', tbl, w)
    ELSE format('UPDATE <branch>.%I c SET %s WHERE %s', tbl, (SELECT string_agg(format('%I = %s', x, CASE kind
      WHEN 'c' THEN format('($2).%I', y) WHEN 'n' THEN 'NULL' ELSE coalesce((SELECT pg_get_expr(d.adbin, d.adrelid)
      FROM pg_attrdef d JOIN pg_attribute t ON t.attrelid = d.adrelid AND t.attnum = d.adnum
      WHERE d.adrelid = child AND t.attname = x), 'NULL') END), ', ') FROM unnest(columns, referenced) u (x, y)), w) END
  FROM (SELECT @b@._dl_pairs('c', columns, '($1)', referenced)) v (w)
$$;

CREATE FUNCTION @b@._dl_needs_parent() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = @path@ AS $$
-- arguments: branch, key's name, table, a SELECT that is true where NEW still stands and has no parent
DECLARE broken boolean;
BEGIN
  PERFORM pg_advisory_xact_lock_shared(hashtextextended(format('%s.%s.%s', @bl@, TG_ARGV[0], TG_ARGV[1]), 1));
  EXECUTE TG_ARGV[3] INTO broken USING NEW;
  IF broken THEN
    RAISE EXCEPTION 'insert or update on table "%" violates foreign key constraint "%"', TG_ARGV[2], TG_ARGV[1]
      USING ERRCODE = 'foreign_key_violation', CONSTRAINT = TG_ARGV[1], TABLE = TG_ARGV[2], SCHEMA = @ml@;
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION @b@._dl_parent_gone() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = @path@ AS $$
-- arguments: branch, key's name, child's table, SELECTs: whether OLD's value is there still, whether children hold it,
-- and what to do with them
DECLARE found boolean;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended(format('%s.%s.%s', @bl@, TG_ARGV[0], TG_ARGV[1]), 1));
  EXECUTE TG_ARGV[3] INTO found USING OLD;
  IF found THEN RETURN NULL; END IF;
  EXECUTE TG_ARGV[4] INTO found USING OLD;
  IF NOT found THEN RETURN NULL; END IF;
  IF TG_ARGV[5] = '' THEN
    RAISE EXCEPTION 'update or delete on a parent table violates foreign key constraint "%" on table "%"', TG_ARGV[1],
      TG_ARGV[2] USING ERRCODE = 'foreign_key_violation', CONSTRAINT = TG_ARGV[1], TABLE = TG_ARGV[2], SCHEMA = @ml@;
  END IF;
  IF TG_OP = 'DELETE' THEN
    EXECUTE (SELECT replace(TG_ARGV[5], '<branch>', quote_ident(place)) FROM @b@._dl_branches
      WHERE id = TG_ARGV[0]::bigint) USING OLD;
  ELSE
    EXECUTE (SELECT replace(TG_ARGV[5], '<branch>', quote_ident(place)) FROM @b@._dl_branches
      WHERE id = TG_ARGV[0]::bigint) USING OLD, NEW;
  END IF;
  RETURN NULL;
END $$;
"""

FUNCTIONS = _WATCH
