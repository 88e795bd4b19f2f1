-- Health: one call says how the whole thing does, from rows that workers write; it asks nobody itself.
--
-- What is older than 25 s is unknown: workers write every 10 s at least, and a killed one shows within 30 s.
-- `unhealthy` means that files which are uploaded now are not worked on: no fresh worker, Auth or Storage not
-- known to answer, or a provider that refuses our key. Anything else that fails is `degraded`: the work goes
-- on, or comes back by itself.

-- How much waits. Each count ends at 100,000, which then means "or more": a health check must cost the
-- same beside any backlog. `oldest_seconds` is exact: a seek for each tenant whose turn is due.
create function ingest.queue_depth()
returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_now   timestamptz := pg_catalog.clock_timestamp();
  v_most  constant integer := 100000;
  v_due   bigint;
  v_later bigint;
begin
  select pg_catalog.count(*) filter (where j.scheduled_at <= v_now), pg_catalog.count(*) filter (where j.scheduled_at > v_now)
    into v_due, v_later
    from (select scheduled_at from public.jobs where state = 'available' limit v_most) j;
  return pg_catalog.jsonb_build_object(
    'depth', v_due,
    'oldest_seconds', (select pg_catalog.round(extract(epoch from v_now - pg_catalog.min(n.due_at)), 3)
                         from (select ingest.next_due(t.tenant_id) as due_at from ingest.turns t where t.due_at <= v_now) n
                        where n.due_at <= v_now),
    'states', pg_catalog.jsonb_build_object(
      'available', v_due,
      'scheduled', v_later,
      'running', (select pg_catalog.count(*) from ingest.leases),
      'discarded', (select pg_catalog.count(*) from (select 1 from public.jobs where state = 'discarded' and finalized_at is not null limit v_most) d)),
    'paused', exists (select 1 from ingest.queues q where q.name = 'ingest' and q.paused_at is not null));
end $$;

-- The newest migration that was applied; null where the CLI's table cannot be read.
create function ingest.applied_migration()
returns text language plpgsql stable security definer set search_path = '' as $$
declare
  v_version  text;
begin
  if pg_catalog.to_regclass('supabase_migrations.schema_migrations') is null then return null; end if;
  select pg_catalog.max(m.version) into v_version from supabase_migrations.schema_migrations m;
  return v_version;
exception when insufficient_privilege then
  return null;
end $$;

create function ingest.health()
returns jsonb language plpgsql stable security definer set search_path = '' as $$
declare
  v_since     timestamptz := pg_catalog.clock_timestamp() - interval '25 seconds';
  v_workers   jsonb;
  v_services  jsonb;
  v_status    text;
begin
  select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
           'worker_id', w.worker_id, 'version', w.version, 'git_sha', w.git_sha, 'started_at', w.started_at,
           'seen_seconds', pg_catalog.round(extract(epoch from pg_catalog.clock_timestamp() - w.seen_at), 1),
           'host', w.host, 'pid', w.pid, 'slots', w.slots, 'running', w.running, 'wake_way', w.wake_way,
           'embedder', w.embedder, 'model', w.model, 'parser', w.parser, 'sandbox', w.sandbox)
         order by w.started_at desc, w.worker_id)
    into v_workers from ingest.workers w where w.seen_at >= v_since;

  with asked as (
    select s.service, s.place,
           case
             when s.service = 'database' then 'ok'         -- it answers this
             when s.service = 'worker' then
               case when v_workers is not null then 'ok' when exists (select 1 from ingest.workers) then 'unknown' else 'failed' end
             -- Providers are somebody's business only while a worker that lives uses them.
             when s.provider and v_workers is null then 'unknown'
             when s.service = 'openai' and not exists (
               select 1 from pg_catalog.jsonb_array_elements(v_workers) w where w->>'embedder' = 'openai') then 'not_configured'
             when s.service = 'llamaparse' and not exists (
               select 1 from pg_catalog.jsonb_array_elements(v_workers) w where w->>'parser' in ('llama-parse', 'llama-cloud')) then 'not_configured'
             else coalesce(p.status, 'unknown')
           end as status,
           p.latency_ms, p.code, p.message, p.checked_at
      from (values ('database', 1, false), ('supabase_auth', 2, false), ('storage', 3, false), ('realtime', 4, false),
                   ('llamaparse', 5, true), ('openai', 6, true), ('worker', 7, false)) as s(service, place, provider)
      left join ingest.probes p on p.service = s.service and p.checked_at >= v_since
  ), told as (
    select a.service, a.place, a.status,
           case when a.status in ('ok', 'failed') then a.latency_ms end as latency_ms,
           case when a.status = 'failed' then coalesce(a.code, 'no_worker')
                when a.status = 'unknown' then 'no_news' end as code,
           case when a.status = 'failed' and a.service = 'worker' then 'No worker runs. Start one: files wait until then.'
                when a.status = 'unknown' and a.service = 'worker' then
                  'No worker was heard of for 25 s: it was killed, hangs, or does not reach the database. Look at its log.'
                when a.status = 'failed' then a.message
                when a.status = 'unknown' then 'Nothing was heard of this service for 25 s, because no worker asked it.' end as message,
           a.checked_at
      from asked a
  )
  select pg_catalog.jsonb_object_agg(t.service, pg_catalog.jsonb_build_object(
           'status', t.status, 'latency_ms', t.latency_ms, 'code', t.code, 'message', t.message, 'checked_at', t.checked_at)),
         case
           when pg_catalog.bool_or(t.service in ('worker', 'supabase_auth', 'storage') and t.status <> 'ok'
                                   or t.service in ('llamaparse', 'openai') and t.code = 'key_refused') then 'unhealthy'
           when pg_catalog.bool_or(t.status not in ('ok', 'not_configured')) then 'degraded'
           else 'ok'
         end
    into v_services, v_status from told t;

  return pg_catalog.jsonb_build_object(
    'status', v_status,
    'timestamp', pg_catalog.clock_timestamp(),
    'version', v_workers->0->>'version',
    'git_sha', v_workers->0->>'git_sha',
    'migration', ingest.applied_migration(),
    'services', v_services,
    'queue', ingest.queue_depth(),
    'workers', coalesce(v_workers, '[]'));
end $$;
comment on function ingest.health() is 'How everything does, as one JSON object; status is ok, degraded or unhealthy.';

-- What the edge function calls.
create function public.health()
returns jsonb language sql stable security invoker set search_path = ''
return ingest.health();

revoke execute on function ingest.queue_depth(), ingest.applied_migration(), ingest.health(), public.health()
  from public, anon, authenticated, service_role;
grant execute on function ingest.queue_depth() to ingest_worker;
grant execute on function ingest.applied_migration() to ingest_worker;
grant execute on function ingest.health() to ingest_worker, service_role;
grant execute on function public.health() to service_role;
