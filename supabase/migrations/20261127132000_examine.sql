-- What `sluice doctor` asks and the worker's login cannot read itself. Both only read.

-- The migrations that were applied, each with a digest of its statements, in the CLI's own history. Blanks and
-- semicolons are left out of it: the CLI keeps the statements apart and without what ends them.
create function ingest.applied_migrations()
returns table (version text, digest text) language plpgsql stable security definer set search_path = '' as $$
begin
  if pg_catalog.to_regclass('supabase_migrations.schema_migrations') is null then return; end if;
  return query
  select m.version::text,
         pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(
           pg_catalog.regexp_replace(pg_catalog.array_to_string(m.statements, ''), '[ \t\r\n;]+', '', 'g'), 'UTF8')), 'hex')
    from supabase_migrations.schema_migrations m
   order by m.version;
end $$;

-- The watched buckets as Storage has them, and what was put aside.
create function ingest.examine()
returns jsonb language sql stable security definer set search_path = '' as $$
  select pg_catalog.jsonb_build_object(
    'buckets', (select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                  'id', w.bucket_id, 'exists', b.id is not null, 'public', coalesce(b.public, false)) order by w.bucket_id), '[]')
                  from ingest.buckets w left join storage.buckets b on b.id = w.bucket_id),
    'ignored_objects', (select pg_catalog.count(*) from ingest.ignored_objects),
    'trigger_failures', (select pg_catalog.count(*) from ingest.trigger_failures))
$$;

revoke execute on function ingest.applied_migrations(), ingest.examine() from public, anon, authenticated, service_role;
grant execute on function ingest.applied_migrations(), ingest.examine() to ingest_worker;
