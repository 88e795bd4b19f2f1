-- Rescue: return jobs whose lease ran out, and running jobs that have none (somebody deleted it).
--
-- Every worker runs it under a try-lock. The attempt stays charged, so a document that kills its
-- worker ends; p_max_rescues rescues without a finished stage between them end it sooner. A job that
-- only waited to run alone had not begun: what killed its worker was another, so it is not charged.

create function ingest.rescue_jobs(p_limit integer default 100, p_max_rescues integer default 3)
returns table (job_id bigint, state public.job_state) language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
  if not pg_catalog.pg_try_advisory_xact_lock(7150010002) then return; end if;
  return query
  with dead as (
    select l.job_id from ingest.leases l where l.expires_at < pg_catalog.clock_timestamp()
     order by l.job_id limit p_limit for update skip locked
  ), free as (
    -- A job that somebody's transaction holds waits for the next rescue, and holds up nobody else's.
    select j.id from public.jobs j join dead on dead.job_id = j.id where j.state = 'running' for no key update of j skip locked
  ), gone as (
    delete from ingest.leases l using dead left join public.jobs j on j.id = dead.job_id
     where l.job_id = dead.job_id and (j.id in (select id from free) or j.state is distinct from 'running')
    returning l.job_id, l.worker_id, l.taken_at
  ), orphans as (
    select j.id as job_id, null::uuid as worker_id, j.started_at as taken_at from public.jobs j
     where j.state = 'running' and not exists (select 1 from ingest.leases l where l.job_id = j.id)
     order by j.id limit p_limit for no key update skip locked
  ), lost as (
    select g.*, j.stage is not null as begun,
           j.stage is not null and (j.attempt >= j.max_attempts or j.rescues + 1 >= p_max_rescues) as given_up
      from (select * from gone union all select * from orphans) g
      join public.jobs j on j.id = g.job_id
     where j.state = 'running'
  ), saved as (
    update public.jobs j
       set state = (case when l.given_up then 'discarded' else 'available' end)::public.job_state,
           finalized_at = case when l.given_up then pg_catalog.now() end,
           rescues = j.rescues + l.begun::integer,
           attempt = j.attempt - (not l.begun)::integer,
           stage = case when l.given_up then j.stage end,
           progress = case when l.given_up then j.progress end,
           scheduled_at = pg_catalog.now(),
           error_code = case when l.given_up then 'worker_lost' else 'lease_expired' end,
           error_message = case when l.given_up
             then 'Processing stopped several times without an answer. Try the file again, or contact support.' end
      from lost l where j.id = l.job_id
    returning j.*, l.worker_id, l.taken_at
  ), logged as (
    insert into public.job_events (job_id, document_id, generation, tenant_id, event, state, stage, attempt, claim, took, error_code)
    select s.id, s.document_id, s.generation, s.tenant_id, 'rescue', s.state, s.stage, s.attempt, s.claim,
           pg_catalog.clock_timestamp() - s.taken_at, s.error_code
      from saved s
  ), detailed as (
    insert into ingest.job_details (job_id, worker_id, raw_error)
    select s.id, s.worker_id, 'The lease ran out; the worker did not answer.' from saved s
    on conflict (job_id) do update set worker_id = excluded.worker_id, raw_error = excluded.raw_error, updated_at = pg_catalog.now()
  ), told as (
    update public.documents d
       set state = (case when s.state = 'discarded' then 'failed' else 'pending' end)::public.document_state,
           error_code = s.error_code, error_message = s.error_message, updated_at = pg_catalog.now()
      from saved s
     where d.id = s.document_id and d.generation = s.generation
    returning d.id
  ), turned as (
    select ingest.take_turn(w.tenant_id, w.due_at)
      from (select s.tenant_id, pg_catalog.min(s.scheduled_at) as due_at from saved s where s.state = 'available'
             group by s.tenant_id order by s.tenant_id) w
     cross join (select pg_catalog.count(*) from told) first
  )
  select s.id, s.state from saved s cross join (select pg_catalog.count(*) from turned) t;
  if found then perform ingest.wake(); end if;
end $$;
