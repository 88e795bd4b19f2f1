-- Retry and cancel by hand, one job or many; pause and resume. Operators may do it to all jobs, an
-- editor to those of their tenants. Each call that is carried out writes one row into ingest.audit.
--
-- Locks: leases, then jobs, then documents, then turns, as everywhere. In bulk every row that somebody
-- holds is stepped over, and all documents are locked before the first turn: job by job, a bulk retry
-- deadlocked with an overwrite, which holds its document and wants the turn.

-- Cancel those of these jobs that wait or run and that nobody holds; returns their ids. A running job
-- loses its lease in the same transaction, so its worker's next checkpoint, settle or renewal finds the
-- claim stale and stops.
create function ingest.cancel_live_jobs(p_jobs bigint[], p_code text, p_message text)
returns setof bigint language plpgsql set search_path = '' as $$
declare
  v_leased  bigint[];
  v_held    bigint[];
begin
  select pg_catalog.array_agg(l.job_id) into v_leased from (
    select job_id from ingest.leases where job_id = any (p_jobs) order by job_id for update skip locked) l;
  select pg_catalog.array_agg(h.id) into v_held from (
    select id from public.jobs where id = any (p_jobs) and state in ('available', 'running')
     order by id for no key update skip locked) h;
  -- Judged by a new snapshot: a claim may have come between the two. Its lease is not ours, nor its job.
  select pg_catalog.array_agg(j.id) into v_held from public.jobs j
   where j.id = any (v_held)
     and (j.id = any (v_leased) or not exists (select 1 from ingest.leases l where l.job_id = j.id));
  if v_held is null then return; end if;

  perform 1 from public.documents d where d.id in (select j.document_id from public.jobs j where j.id = any (v_held))
    order by d.id for no key update;
  return query
  with gone as (
    delete from ingest.leases l where l.job_id = any (v_held) returning l.job_id, l.worker_id, l.taken_at
  ), cancelled as (
    update public.jobs j set state = 'cancelled', finalized_at = pg_catalog.now(), error_code = p_code, error_message = p_message
     where j.id = any (v_held)
    returning j.*
  ), logged as (
    insert into public.job_events (job_id, document_id, generation, tenant_id, event, state, stage, attempt, claim, took, error_code)
    select c.id, c.document_id, c.generation, c.tenant_id, 'cancel', c.state, c.stage, c.attempt, c.claim,
           pg_catalog.clock_timestamp() - g.taken_at, c.error_code
      from cancelled c left join gone g on g.job_id = c.id
  ), detailed as (
    insert into ingest.job_details (job_id, worker_id)
    select g.job_id, g.worker_id from gone g
    on conflict (job_id) do update set worker_id = excluded.worker_id, updated_at = pg_catalog.now()
  ), told as (
    update public.documents d set state = 'cancelled', error_code = p_code, error_message = p_message, updated_at = pg_catalog.now()
      from cancelled c where d.id = c.document_id and d.generation = c.generation
  )
  select c.id from cancelled c order by c.id;
end $$;

-- The job, when the caller may act on it. What is not there and what is another's look the same.
create function ingest.job_of_caller(p_job bigint)
returns public.jobs language plpgsql stable set search_path = '' as $$
declare
  v_job public.jobs;
begin
  select * into v_job from public.jobs j
   where j.id = p_job and (ingest.is_operator() or j.tenant_id = any (array(select ingest.my_tenants('editor'))));
  if not found then
    raise exception 'There is no job % that you may act on.', p_job using errcode = '42501',
      hint = 'It takes the role editor in the job''s organisation, or an operator.';
  end if;
  return v_job;
end $$;

create function ingest.retry_for_caller(p_job bigint)
returns void language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_job public.jobs := ingest.job_of_caller(p_job);
begin
  perform ingest.retry_discarded(p_job, case when ingest.is_operator() then 'operator' else 'member' end);
  perform ingest.note_act('retry_job', pg_catalog.jsonb_build_object('job', p_job, 'tenant', v_job.tenant_id), 1);
end $$;

-- False when the job had ended already. One job is worth waiting for: for a checkpoint that holds the lease,
-- and for a claim that holds the job and has not committed its lease yet. Whoever finds such a lease lets go
-- of the job again (the subtransaction does that) and begins with the lease.
create function ingest.cancel_for_caller(p_job bigint)
returns boolean language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_job        public.jobs := ingest.job_of_caller(p_job);
  v_leased     boolean;
  v_cancelled  integer;
begin
  for v_try in 1..10 loop
    perform 1 from ingest.leases where job_id = p_job for update;
    v_leased := found;
    begin
      perform 1 from public.jobs where id = p_job for no key update;
      if not v_leased and exists (select 1 from ingest.leases where job_id = p_job) then
        raise exception 'a claim came between' using errcode = 'IG013';
      end if;
      select pg_catalog.count(*) into v_cancelled
        from ingest.cancel_live_jobs(array[p_job], 'cancelled', 'Processing was cancelled. Retry it, or upload the file again.');
      if v_cancelled > 0 then
        perform ingest.note_act('cancel_job', pg_catalog.jsonb_build_object('job', p_job, 'tenant', v_job.tenant_id), v_cancelled);
      end if;
      return v_cancelled > 0;
    exception when sqlstate 'IG013' then null;
    end;
  end loop;
  raise exception 'Job % is in use at this moment and was not cancelled.', p_job using errcode = '55P03', hint = 'Try it again.';
end $$;

-- The jobs that a bulk call is about: the oldest first, p_limit at most.
create function ingest.matching_jobs(
  p_states public.job_state[], p_code text, p_tenant uuid, p_state public.job_state, p_older_than interval, p_limit integer
)
returns bigint[] language plpgsql stable set search_path = '' as $$
declare
  v_jobs bigint[];
begin
  if (p_limit between 1 and 1000) is not true or p_older_than < interval '0' then
    raise exception 'at_most is %, it must be between 1 and 1000, and an age is not below zero', p_limit using errcode = '22023';
  end if;
  if p_code is null and p_tenant is null and p_state is null and p_older_than is null then
    raise exception 'This would be every job there is.' using errcode = '22023',
      hint = 'Say which: by code, tenant, state or older_than.';
  end if;
  if not p_state = any (p_states) then
    raise exception 'A job that is % is not for this call.', p_state using errcode = '22023',
      hint = 'Ended jobs are retried, live ones are cancelled.';
  end if;
  select pg_catalog.array_agg(m.id order by m.id) into v_jobs from (
    select j.id from public.jobs j
     where j.state = any (case when p_state is null then p_states else array[p_state] end)
       and (p_code is null or j.error_code = p_code)
       and (p_tenant is null or j.tenant_id = p_tenant)
       and (p_older_than is null or coalesce(j.finalized_at, j.created_at) <= pg_catalog.now() - p_older_than)
     order by j.id limit p_limit) m;
  return coalesce(v_jobs, '{}');
end $$;

-- Retry those of these jobs that nobody holds and that can be; returns how many.
create function ingest.retry_ended(p_jobs bigint[], p_by text)
returns integer language plpgsql set search_path = '' as $$
declare
  v_jobs  bigint[];
  v_job   bigint;
  v_done  integer := 0;
begin
  select pg_catalog.array_agg(l.id order by l.id) into v_jobs from (
    select id from public.jobs where id = any (p_jobs) order by id for no key update skip locked) l;
  -- A job whose document somebody holds is passed over, or the loop would wait with turns in its hands.
  with free as (
    select d.id from public.documents d where d.id in (select j.document_id from public.jobs j where j.id = any (v_jobs))
     order by d.id for no key update skip locked
  )
  select pg_catalog.array_agg(j.id order by j.tenant_id, j.id) into v_jobs
    from public.jobs j join free f on f.id = j.document_id where j.id = any (v_jobs);
  foreach v_job in array coalesce(v_jobs, '{}') loop
    begin
      perform ingest.retry_discarded(v_job, p_by);
      v_done := v_done + 1;
    exception when sqlstate 'IG008' then null;
    end;
  end loop;
  return v_done;
end $$;

-- Retry ended jobs by filter. `skipped` are those that somebody held or that cannot be retried: their
-- file was deleted or replaced, or is searchable already.
create function ingest.retry_matching(p_code text, p_tenant uuid, p_state public.job_state, p_older_than interval, p_limit integer)
returns table (done integer, skipped integer) language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_jobs bigint[];
begin
  perform ingest.must_operate();
  v_jobs := ingest.matching_jobs('{discarded,cancelled}', p_code, p_tenant, p_state, p_older_than, p_limit);
  done := ingest.retry_ended(v_jobs, 'operator');
  skipped := cardinality(v_jobs) - done;
  perform ingest.note_act('retry_jobs', pg_catalog.jsonb_build_object(
    'code', p_code, 'tenant', p_tenant, 'state', p_state, 'older_than', p_older_than, 'at_most', p_limit), done);
  return next;
end $$;

-- Cancel live jobs by filter. `skipped` are those that somebody held at that moment.
create function ingest.cancel_matching(p_code text, p_tenant uuid, p_state public.job_state, p_older_than interval, p_limit integer)
returns table (done integer, skipped integer) language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_jobs bigint[];
begin
  perform ingest.must_operate();
  v_jobs := ingest.matching_jobs('{available,running}', p_code, p_tenant, p_state, p_older_than, p_limit);
  select pg_catalog.count(*) into done
    from ingest.cancel_live_jobs(v_jobs, 'cancelled', 'An operator cancelled the processing. Upload the file again, or contact support.');
  skipped := cardinality(v_jobs) - done;
  perform ingest.note_act('cancel_jobs', pg_catalog.jsonb_build_object(
    'code', p_code, 'tenant', p_tenant, 'state', p_state, 'older_than', p_older_than, 'at_most', p_limit), done);
  return next;
end $$;

create function ingest.pause_for_operator(p_queue text)
returns timestamptz language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_since timestamptz;
begin
  perform ingest.must_operate();
  v_since := ingest.pause_queue(p_queue);
  perform ingest.note_act('pause_queue', pg_catalog.jsonb_build_object('queue', p_queue), 1);
  return v_since;
end $$;

create function ingest.resume_for_operator(p_queue text)
returns boolean language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_was_paused boolean;
begin
  perform ingest.must_operate();
  v_was_paused := ingest.resume_queue(p_queue);
  perform ingest.note_act('resume_queue', pg_catalog.jsonb_build_object('queue', p_queue), v_was_paused::integer);
  return v_was_paused;
end $$;

-- What only operators may read of a job: who held it last, what was raised, and the lease if it runs.
create function ingest.details_for_operator(p_job bigint)
returns table (job_id bigint, worker_id uuid, raw_error text, awaiting_parse_id bigint, updated_at timestamptz,
               taken_at timestamptz, lease_expires_at timestamptz)
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
begin
  perform ingest.must_operate();
  return query
    select j.id, coalesce(l.worker_id, d.worker_id), d.raw_error, d.awaiting_parse_id, d.updated_at, l.taken_at, l.expires_at
      from public.jobs j
      left join ingest.job_details d on d.job_id = j.id
      left join ingest.leases l on l.job_id = j.id
     where j.id = p_job;
end $$;

-- What the API calls.
create function public.retry_job(job bigint)
returns void language sql set search_path = '' as $$ select ingest.retry_for_caller(job) $$;
comment on function public.retry_job is 'Bring a discarded or cancelled job back. For editors of its organisation, and operators.';

create function public.cancel_job(job bigint)
returns boolean language sql set search_path = '' as $$ select ingest.cancel_for_caller(job) $$;
comment on function public.cancel_job is 'Stop a job that waits or runs; false when it had ended. For editors of its organisation, and operators.';

create function public.retry_jobs(
  code text default null, tenant uuid default null, state public.job_state default null, older_than interval default null,
  at_most integer default 100
)
returns table (done integer, skipped integer) language sql set search_path = '' as $$
  select r.done, r.skipped from ingest.retry_matching(code, tenant, state, older_than, at_most) r
$$;
comment on function public.retry_jobs is 'For operators: retry ended jobs by filter, the oldest first.';

create function public.cancel_jobs(
  code text default null, tenant uuid default null, state public.job_state default null, older_than interval default null,
  at_most integer default 100
)
returns table (done integer, skipped integer) language sql set search_path = '' as $$
  select c.done, c.skipped from ingest.cancel_matching(code, tenant, state, older_than, at_most) c
$$;
comment on function public.cancel_jobs is 'For operators: cancel live jobs by filter, the oldest first.';

create function public.pause_queue(queue text default 'ingest')
returns timestamptz language sql set search_path = '' as $$ select ingest.pause_for_operator(queue) $$;
comment on function public.pause_queue is 'For operators: give out no more jobs; returns since when. What runs goes on.';

create function public.resume_queue(queue text default 'ingest')
returns boolean language sql set search_path = '' as $$ select ingest.resume_for_operator(queue) $$;
comment on function public.resume_queue is 'For operators: give out jobs again; returns whether it was paused.';

create function ingest.set_quota_for_operator(p_tenant uuid, p_bytes bigint, p_files bigint, p_pages_month bigint, p_running integer)
returns integer language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_retried integer;
begin
  perform ingest.must_operate();
  v_retried := ingest.set_quota(p_tenant, p_bytes, p_files, p_pages_month, p_running);
  perform ingest.note_act('set_quota', pg_catalog.jsonb_build_object(
    'tenant', p_tenant, 'bytes', p_bytes, 'files', p_files, 'pages_month', p_pages_month, 'running', p_running), 1);
  return v_retried;
end $$;

create function public.set_quota(tenant uuid, bytes bigint, files bigint, pages_month bigint, running integer)
returns integer language sql set search_path = '' as $$
  select ingest.set_quota_for_operator(tenant, bytes, files, pages_month, running)
$$;
comment on function public.set_quota is
  'For operators: a tenant''s quotas, or with tenant null everybody''s; null is no limit. Returns how many refused files came back.';

create function public.job_details(job bigint)
returns table (job_id bigint, worker_id uuid, raw_error text, awaiting_parse_id bigint, updated_at timestamptz,
               taken_at timestamptz, lease_expires_at timestamptz)
language sql stable set search_path = '' as $$
  select d.job_id, d.worker_id, d.raw_error, d.awaiting_parse_id, d.updated_at, d.taken_at, d.lease_expires_at
    from ingest.details_for_operator(job) d
$$;
comment on function public.job_details is 'For operators: the worker and the raw error of a job.';

revoke execute on function
  ingest.cancel_live_jobs(bigint[], text, text), ingest.retry_ended(bigint[], text), ingest.job_of_caller(bigint),
  ingest.matching_jobs(public.job_state[], text, uuid, public.job_state, interval, integer),
  ingest.retry_for_caller(bigint), ingest.cancel_for_caller(bigint),
  ingest.set_quota_for_operator(uuid, bigint, bigint, bigint, integer), public.set_quota(uuid, bigint, bigint, bigint, integer),
  ingest.retry_matching(text, uuid, public.job_state, interval, integer),
  ingest.cancel_matching(text, uuid, public.job_state, interval, integer),
  ingest.pause_for_operator(text), ingest.resume_for_operator(text), ingest.details_for_operator(bigint),
  public.retry_job(bigint), public.cancel_job(bigint),
  public.retry_jobs(text, uuid, public.job_state, interval, integer),
  public.cancel_jobs(text, uuid, public.job_state, interval, integer),
  public.pause_queue(text), public.resume_queue(text), public.job_details(bigint)
  from public, anon, authenticated, service_role;
grant execute on function
  ingest.retry_for_caller(bigint), ingest.cancel_for_caller(bigint),
  ingest.set_quota_for_operator(uuid, bigint, bigint, bigint, integer), public.set_quota(uuid, bigint, bigint, bigint, integer),
  ingest.retry_matching(text, uuid, public.job_state, interval, integer),
  ingest.cancel_matching(text, uuid, public.job_state, interval, integer),
  ingest.pause_for_operator(text), ingest.resume_for_operator(text), ingest.details_for_operator(bigint),
  public.retry_job(bigint), public.cancel_job(bigint),
  public.retry_jobs(text, uuid, public.job_state, interval, integer),
  public.cancel_jobs(text, uuid, public.job_state, interval, integer),
  public.pause_queue(text), public.resume_queue(text), public.job_details(bigint)
  to authenticated;
