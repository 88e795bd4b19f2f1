-- Probes: what became of the last real request to each service that a document needs. Any worker may ask,
-- and one of them does: whoever takes the turn first. A turn that was taken and not used comes round again
-- after the same time, so a worker that dies with it leaves no gap of 25 s.

create table ingest.probes (
  service     text primary key check (service in ('database', 'supabase_auth', 'storage', 'realtime', 'llamaparse', 'openai', 'worker')),
  status      text not null check (status in ('ok', 'failed')),
  latency_ms  real check (latency_ms >= 0),
  code        text check (char_length(code) between 1 and 64),
  message     text check (char_length(message) <= 1000),
  checked_at  timestamptz not null default clock_timestamp(),
  worker_id   uuid,
  constraint failed_means_code check ((status = 'failed') = (code is not null))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
comment on table ingest.probes is 'The newest answer of each service; older than 25 s it says nothing.';
alter table ingest.probes enable row level security;

create table ingest.probe_turns (
  service    text primary key check (service in ('database', 'supabase_auth', 'storage', 'realtime', 'llamaparse', 'openai', 'worker')),
  worker_id  uuid not null,
  taken_at   timestamptz not null default clock_timestamp()
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
comment on table ingest.probe_turns is 'Who asked each service last, and when.';
alter table ingest.probe_turns enable row level security;

-- Take the turns that are due among these services; what is returned is this worker's to ask, and nobody
-- else's for p_every. Rows are locked in the order of their names, so two takers never wait for each other.
create function ingest.take_probes(p_worker uuid, p_services text[], p_every interval)
returns setof text language sql set search_path = '' as $$
  insert into ingest.probe_turns as t (service, worker_id)
  select s.service, p_worker from pg_catalog.unnest(p_services) as s(service) order by s.service
  on conflict (service) do update set worker_id = excluded.worker_id, taken_at = excluded.taken_at
   where t.taken_at <= excluded.taken_at - p_every
  returning t.service
$$;

-- What a service answered. The newest stands, whoever asked.
create function ingest.record_probe(p_worker uuid, p_service text, p_latency_ms real, p_code text, p_message text)
returns void language sql set search_path = '' as $$
  insert into ingest.probes as p (service, status, latency_ms, code, message, worker_id)
  values (p_service, case when p_code is null then 'ok' else 'failed' end, p_latency_ms, pg_catalog.left(p_code, 64),
          pg_catalog.left(ingest.without_secrets(p_message), 1000), p_worker)
  on conflict (service) do update
     set status = excluded.status, latency_ms = excluded.latency_ms, code = excluded.code, message = excluded.message,
         checked_at = excluded.checked_at, worker_id = excluded.worker_id
$$;

revoke all on table ingest.probes, ingest.probe_turns from public, anon, authenticated, service_role;
grant select, insert, update on table ingest.probes, ingest.probe_turns to ingest_worker;
revoke execute on function ingest.take_probes(uuid, text[], interval), ingest.record_probe(uuid, text, real, text, text)
  from public, anon, authenticated, service_role;
grant execute on function ingest.take_probes(uuid, text[], interval), ingest.record_probe(uuid, text, real, text, text)
  to ingest_worker;
