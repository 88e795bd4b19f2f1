-- Which migrations this database has: a deploy asks before it starts workers that need them.

-- As the CLI's files are called, without their ending; none where the CLI has never pushed.
create function ingest.list_applied_migrations()
returns setof text language plpgsql stable security definer set search_path = '' as $$
begin
  if pg_catalog.to_regclass('supabase_migrations.schema_migrations') is null then return; end if;
  return query select m.version || '_' || m.name from supabase_migrations.schema_migrations m order by m.version;
end $$;

revoke execute on function ingest.list_applied_migrations() from public, anon, authenticated, service_role;
grant execute on function ingest.list_applied_migrations() to ingest_worker;
