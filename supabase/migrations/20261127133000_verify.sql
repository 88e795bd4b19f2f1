-- Verify: what `sluice verify` asks of a target, and how its users go where Auth has no administration.

-- What runs there: versions, the newest migration, and the workers that say so. Definer: the history of migrations
-- is its owner's only.
create function ingest.target_facts()
returns jsonb language plpgsql stable security definer set search_path = '' as $$
declare
  v_facts    jsonb := pg_catalog.jsonb_build_object(
    'postgres', pg_catalog.current_setting('server_version'),
    'pgvector', (select e.extversion from pg_catalog.pg_extension e where e.extname = 'vector'));
  v_found    jsonb;
begin
  -- By name and as text: neither table is ours, or needs to be there.
  if pg_catalog.to_regclass('supabase_migrations.schema_migrations') is not null then
    execute 'select pg_catalog.jsonb_build_object(''migration'', pg_catalog.max(version), ''migrations'', pg_catalog.count(*)) from supabase_migrations.schema_migrations'
      into v_found;
    v_facts := v_facts || v_found;
  end if;
  if pg_catalog.to_regclass('ingest.workers') is not null then
    execute 'select coalesce(pg_catalog.jsonb_agg(pg_catalog.to_jsonb(w) order by w.seen_at desc), ''[]'') from (
               select * from ingest.workers where seen_at > pg_catalog.now() - interval ''25 seconds'' order by seen_at desc limit 20) w'
      into v_found;
    v_facts := v_facts || pg_catalog.jsonb_build_object('workers', v_found);
  end if;
  return v_facts;
end $$;

-- How many rows each table has of these tenants, objects and users included, by the catalogue: a table that is made
-- later is counted too. Definer: Storage's and Auth's tables, and those that no grant lists.
create function ingest.rows_of(p_tenants uuid[])
returns jsonb language plpgsql stable security definer set search_path = '' as $$
declare
  v_table   record;
  v_count   bigint;
  v_rows    jsonb := '{}';
begin
  for v_table in
    select n.nspname, c.relname from pg_catalog.pg_class c
      join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
     where n.nspname in ('public', 'ingest') and c.relkind in ('r', 'p') and not c.relispartition
     order by 1, 2
  loop
    execute pg_catalog.format('select pg_catalog.count(*) from %I.%I where tenant_id = any ($1)', v_table.nspname, v_table.relname)
      into v_count using p_tenants;
    v_rows := v_rows || pg_catalog.jsonb_build_object(v_table.nspname || '.' || v_table.relname, v_count);
  end loop;
  return v_rows || pg_catalog.jsonb_build_object(
    'public.tenants', (select pg_catalog.count(*) from public.tenants t where t.id = any (p_tenants)),
    'storage.objects', (select pg_catalog.count(*) from storage.objects o
                         where pg_catalog.lower(pg_catalog.split_part(o.name, '/', 1)) = any (p_tenants::text[])),
    'auth.users', (select pg_catalog.count(*) from auth.users u where u.id = any (p_tenants)));
end $$;

-- The users that a run signed up, by their addresses: also one whose answer never reached it. Definer: Auth's table.
create function ingest.users_of_run(p_run text)
returns setof uuid language sql stable security definer rows 2 set search_path = '' as $$
  select u.id from auth.users u
   where p_run ~ '^[0-9a-f]{8,32}$' and pg_catalog.starts_with(u.email, 'sluice-verify-' || p_run || '-')
$$;

-- Remove users that a verification made, and no others, whoever asks: their addresses say so. For where Auth itself
-- has no way to; sessions and identities go with them.
create function ingest.remove_verify_users(p_users uuid[])
returns integer language plpgsql set search_path = '' as $$
declare
  v_removed  integer;
begin
  delete from auth.users u where u.id = any (p_users) and u.email like 'sluice-verify-%@%';
  get diagnostics v_removed = row_count;
  return v_removed;
end $$;

revoke execute on function ingest.target_facts(), ingest.rows_of(uuid[]), ingest.users_of_run(text), ingest.remove_verify_users(uuid[])
  from public, anon, authenticated, service_role;
grant execute on function ingest.target_facts(), ingest.rows_of(uuid[]), ingest.users_of_run(text) to ingest_worker;
