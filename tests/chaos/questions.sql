-- Every question of the harness, by name.

-- name: add_model
select ingest.activate_embedding_model(ingest.add_embedding_model($1::text, $2::text, $3::int));

-- name: add_user
insert into auth.users (id, email) values ($1::uuid, $1::text || '@example.org');

-- name: open
select (select count(*) from public.jobs where state in ('available', 'running')) + (select count(*) from ingest.leases);

-- name: longest_overdue
select coalesce(max(extract(epoch from clock_timestamp() - expires_at)), 0)::float8 from ingest.leases;

-- name: cut_waits
-- Waits of a minute or five are not waited for whole; a provider's own Retry-After is.
with cut as (
  update public.jobs set scheduled_at = now() + $1 * interval '1 second' where id in (
    select id from public.jobs
     where state = 'available' and scheduled_at > now() + $1 * interval '1 second'
       and error_code is distinct from 'provider_rate_limited'
     order by id for no key update skip locked)
  returning tenant_id
)
select count(ingest.take_turn(t.tenant_id)) from (select distinct tenant_id from cut) t;

-- name: no_claims
-- The lock under which all claims are made.
select pg_advisory_xact_lock(7150010001);

-- name: last
-- Three deaths without a finished stage, or five attempts, end a document by design: harm is withheld where it would
-- be the last that a document bears, and done a moment later elsewhere; of the
-- others one is the provider's to fail, one for Storage's return after a crash. A null worker means harm to all.
select exists (
  select from public.jobs j join public.documents d on d.id = j.document_id
   where (j.attempt >= 3 or j.rescues >= 2)
     and d.name not like '%/poison%'
     and case when $1::uuid is null
              then j.state = 'running' or j.state = 'available' and j.scheduled_at < now() + interval '1 second'
              else j.state = 'running'
                   and exists (select from ingest.leases l where l.job_id = j.id and l.worker_id = $1) end);

-- name: end_claims
-- A claim that stands in line would otherwise be made for a worker that is dead or deaf.
select pg_terminate_backend(pid) from pg_stat_activity
 where client_port = any ($1::int[]) and wait_event_type = 'Lock' and wait_event = 'advisory';

-- name: note_kill
insert into chaos.kills select clock_timestamp(), $2::text, job_id, claim from ingest.leases where worker_id = $1::uuid;

-- name: end_backend
select pg_terminate_backend(pid) from pg_stat_activity where client_port = $1::int;

-- name: end_backends
select pg_terminate_backend(pid) from (
  select pid from pg_stat_activity
   where client_port = any ($1::int[]) and application_name = 'sluice worker'
   order by random() limit 3) s;

-- name: end_listeners
select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'sluice listener';

-- name: objects
select o.id, o.name, o.version, d.state::text, d.generation, d.published_generation, d.error_code,
       (select string_agg(format('job %s of generation %s %s, attempt %s, rescues %s, %s',
                                 j.id, j.generation, j.state, j.attempt, j.rescues, j.error_code), '; ' order by j.id)
          from public.jobs j where j.document_id = o.id) as jobs
  from storage.objects o left join public.documents d on d.id = o.id
 where o.bucket_id = 'documents';

-- name: chunks
select c.document_id, c.ordinal, c.content, e.embedding::text
  from public.chunks c
  left join ingest.embedding_models m on m.active
  left join ingest.embeddings e
         on e.model_id = m.id and e.tenant_id = c.tenant_id and e.content_sha256 = c.content_sha256
 order by c.document_id, c.ordinal;

-- name: timeline
-- What happened to a document's jobs, kills included.
select string_agg(format('%s %s', to_char(at, 'HH24:MI:SS.MS'), said), ', ' order by at) from (
  select e.at, concat_ws(' ', e.event, e.error_code, 'job', e.job_id, 'claim', e.claim, 'attempt', e.attempt, e.stage) as said
    from public.job_events e where e.document_id = $1::uuid
  union all
  select k.at, concat_ws(' ', 'KILL', k.point, 'job', k.job_id, 'claim', k.claim)
    from chaos.kills k join public.jobs j on j.id = k.job_id where j.document_id = $1::uuid
  union all
  select t.at, 'trigger failed: ' || t.message from ingest.trigger_failures t where t.object_id = $1::uuid) t;

-- name: twice
select format('document %s generation %s was published %s times', document_id, generation, count(*))
  from chaos.publications group by document_id, generation having count(*) > 1
union all
select format('job %s was completed %s times', job_id, count(*))
  from chaos.completions group by job_id having count(*) > 1
union all
select format('document %s generation %s has %s completed jobs', document_id, generation, count(*))
  from public.jobs where state = 'completed' group by document_id, generation having count(*) > 1;

-- name: orphans
select 'chunk of no document: ' || c.document_id from public.chunks c
 where not exists (select from public.documents d where d.id = c.document_id)
union all
select 'document of no object: ' || d.id from public.documents d
 where not exists (select from storage.objects o where o.id = d.id)
union all
select 'lease left: job ' || l.job_id from ingest.leases l
union all
select 'running without lease: job ' || j.id from public.jobs j
 where j.state = 'running' and not exists (select from ingest.leases l where l.job_id = j.id)
union all
select 'connection left: ' || a.application_name from pg_stat_activity a where a.application_name like 'sluice%';

-- name: charged_by_429
-- A 429 takes back the attempt that its claim charged, and never ends or charges a job.
select e.job_id from public.job_events e
 where e.error_code = 'provider_rate_limited'
   and (e.event in ('retry', 'discard')
        or e.event = 'snooze' and e.attempt <> (
             select c.attempt - 1 from public.job_events c
              where c.job_id = e.job_id and c.claim = e.claim and c.event = 'claim'));

-- name: broken_claims
select job_id from (
  select job_id, claim, lag(claim) over (partition by job_id order by id) as before
    from public.job_events where event = 'claim') c
 where before >= claim
union all
select id from public.jobs where attempt > max_attempts;

-- name: recoveries
select extract(epoch from min(e.at) - k.at)::float8 as seconds
  from chaos.kills k
  join public.job_events e on e.job_id = k.job_id and e.claim = k.claim and e.event = 'rescue'
 group by k.at, k.job_id order by 1;

-- name: jobs
select count(*) from public.jobs;

-- name: events
select event || coalesce(' ' || error_code, ''), count(*) from public.job_events group by 1 order by 1;

-- name: most_rescues
select coalesce(max(n), 0) from (
  select count(*) as n from public.job_events where event = 'rescue' group by job_id) r;

-- name: neighbours_seconds
-- From the first claim to the end of the last document that is not poison.
select extract(epoch from max(j.finalized_at) - (select min(at) from public.job_events where event = 'claim'))::float8
  from public.jobs j join public.documents d on d.id = j.document_id where d.name not like '%/poison%';

-- name: neighbours_open
select count(*) from public.jobs j join public.documents d on d.id = j.document_id
 where j.state in ('available', 'running') and d.name not like '%/poison%';

-- name: neighbours_ready
select count(*) from public.documents where state = 'ready' and name not like '%/poison%';

-- name: poison_leases
select count(*) from public.job_events e join public.documents d on d.id = e.document_id
 where e.event = 'claim' and d.name like '%/poison%';

-- name: poison_verdict
select d.error_code from public.documents d where d.name like '%/poison%';
