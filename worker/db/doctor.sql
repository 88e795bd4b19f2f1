-- What `sluice doctor` asks. The catalogue is read by name and never by ::regclass, which fails for what is missing and
-- for schemas that the login may not use; so these work also on a database without our migrations.

-- name: describe_server
select current_setting('transaction_read_only') = 'on' as read_only, clock_timestamp() as now, current_setting('fsync') as fsync,
       current_setting('full_page_writes') as full_page_writes, current_setting('synchronous_commit') as synchronous_commit;

-- What others do is hidden from this login, the kind of their backends too; whose they are is not.
-- name: connection_room
select least(
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
      - coalesce(current_setting('reserved_connections', true)::int, 0)
      - (select count(*) from pg_stat_activity where datid is not null and usesysid is not null),
    case when r.rolconnlimit >= 0
         then r.rolconnlimit - (select count(*) from pg_stat_activity a where a.usesysid = r.oid) end,
    case when d.datconnlimit >= 0
         then d.datconnlimit - (select count(*) from pg_stat_activity a where a.datid = d.oid) end)::int as left
  from pg_roles r, pg_database d where r.rolname = session_user and d.datname = current_database();

-- name: find_extension
select n.nspname as schema, e.extversion as version
  from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = $1::text;

-- name: storage_trigger
select t.tgenabled::text as enabled
  from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = 'storage' and c.relname = 'objects' and t.tgname = 'sluice_object_changed';

-- name: policies_of
select c.relrowsecurity as secured, array(select p.polname::text from pg_policy p where p.polrelid = c.oid) as policies
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1::text and c.relname = $2::text;

-- name: published_tables
select schemaname || '.' || tablename as name from pg_publication_tables where pubname = $1::text;

-- name: describe_login
select rolname as name, rolsuper as superuser, rolcreaterole as createrole, rolcreatedb as createdb,
       rolreplication as replication, rolbypassrls as bypassrls,
       array(select m.rolname::text from pg_roles m where m.oid <> r.oid and pg_has_role(r.oid, m.oid, 'member') order by 1) as roles
  from pg_roles r where r.rolname = session_user;

-- name: refused_functions
select p.proname::text as name from pg_proc p join pg_namespace n on n.oid = p.pronamespace
 where n.nspname || '.' || p.proname = any ($1::text[]) and not has_function_privilege(session_user, p.oid, 'execute') order by 1;

-- name: refused_relations
select w.name, w.privilege
  from unnest($1::text[], $2::text[], $3::text[]) as w (name, privilege, columns)
  join pg_namespace n on n.nspname = split_part(w.name, '.', 1)
  join pg_class c on c.relnamespace = n.oid and c.relname = split_part(w.name, '.', 2)
 where not case when c.relkind = 'S' then has_sequence_privilege(session_user, c.oid, w.privilege)
                when w.columns <> '' then has_column_privilege(session_user, c.oid, w.columns, w.privilege)
                else has_table_privilege(session_user, c.oid, w.privilege) end
 order by 1, 2;

-- name: event_partitions
select coalesce(array_agg(c.relname::text), '{}') as names,
       array[to_char(now() at time zone 'utc', '"job_events_"YYYY_MM'),
             to_char(now() at time zone 'utc' + interval '1 month', '"job_events_"YYYY_MM')] as wanted
  from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_class p on p.oid = i.inhparent
  join pg_namespace n on n.oid = p.relnamespace where n.nspname = 'public' and p.relname = 'job_events';

-- name: queue_state
select (select min(paused_at) from ingest.queues where paused_at is not null) as paused_at, count(*) as due,
       coalesce(extract(epoch from now() - min(scheduled_at)), 0)::float as waited,
       (select count(*) from ingest.leases where expires_at > now()) as held
  from public.jobs where state = 'available' and scheduled_at <= now();

-- name: applied_migrations
select version, digest from ingest.applied_migrations();

-- name: examine
select ingest.examine() as found;
