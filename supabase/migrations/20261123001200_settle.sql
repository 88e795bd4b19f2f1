-- Settle: the one place where an attempt ends, and the verbs that are its verdicts.
--
-- Settling begins by deleting the lease with the right claim number: no row, no verdict. Locks are
-- taken in the order lease, job, document, turn, as everywhere.

create function ingest.settle_jobs(
  p_jobs     bigint[],
  p_claims   bigint[],
  p_verdict  text,
  p_delay    interval default interval '0',
  p_code     text default null,
  p_message  text default null,                            -- for the tenant's people
  p_raw      text default null,                            -- for operators
  p_bounded  boolean default false,                        -- a snooze that gives up a day after the first
  p_detail   jsonb default null,
  p_growing  boolean default false                         -- the delay grows to half the time since the first such snooze
)
returns table (job_id bigint, verdict text) language plpgsql set search_path = '' set jit = off as $$
#variable_conflict use_column
begin
  if p_verdict not in ('complete', 'retry', 'snooze', 'release', 'cancel', 'discard') then
    raise exception 'There is no verdict %.', p_verdict using errcode = '22023';
  end if;
  return query
  with gone as (
    delete from ingest.leases l using unnest(p_jobs, p_claims) as h(job_id, claim)
     where l.job_id = h.job_id and l.claim = h.claim
    returning l.job_id, l.worker_id, l.taken_at
  ), decided as (
    select g.*, case
        when p_verdict = 'retry' and j.attempt >= j.max_attempts then 'discard'
        when p_verdict = 'snooze' and p_bounded and j.snoozing_since < pg_catalog.now() - interval '24 hours' then 'discard'
        else p_verdict end as v
      from gone g join public.jobs j on j.id = g.job_id
     where j.state = 'running'
  ), settled as (
    update public.jobs j
       set state = (case d.v when 'complete' then 'completed' when 'cancel' then 'cancelled' when 'discard' then 'discarded' else 'available' end)::public.job_state,
           finalized_at = case when d.v in ('complete', 'cancel', 'discard') then pg_catalog.now() end,
           stage = case when d.v in ('cancel', 'discard') then j.stage end,
           progress = case when d.v = 'complete' then 1 when d.v in ('cancel', 'discard') then j.progress end,
           attempt = j.attempt - case when d.v in ('snooze', 'release') then 1 else 0 end,
           snoozes = j.snoozes + case when d.v = 'snooze' then 1 else 0 end,
           -- Only snoozes that end by age count it: after a day of our own wrong key a first 429 is the first.
           snoozing_since = case when d.v = 'snooze' and p_bounded then coalesce(j.snoozing_since, pg_catalog.now())
                                 when d.v = 'release' then j.snoozing_since end,
           scheduled_at = case when d.v in ('retry', 'snooze', 'release')
             then pg_catalog.now() + case when p_growing then greatest(p_delay, least((pg_catalog.now() - j.snoozing_since) / 2, interval '15 minutes'))
                                          else p_delay end
             else j.scheduled_at end,
           error_code = case when d.v = 'discard' then coalesce(p_code, 'internal') when d.v <> 'complete' then p_code end,
           error_message = case when d.v <> 'complete' then p_message end
      from decided d where j.id = d.job_id                 -- no j.state here: it would choose the partial index
    returning j.*, d.v, d.worker_id, d.taken_at
  ), logged as (
    insert into public.job_events (job_id, document_id, generation, tenant_id, event, state, stage, attempt, claim, took, error_code, detail)
    select s.id, s.document_id, s.generation, s.tenant_id, s.v, s.state, s.stage, s.attempt, s.claim,
           pg_catalog.clock_timestamp() - s.taken_at, s.error_code, p_detail
      from settled s
  ), detailed as (
    insert into ingest.job_details (job_id, worker_id, raw_error)
    select s.id, s.worker_id, pg_catalog.left(p_raw, 20000) from settled s where p_raw is not null
    on conflict (job_id) do update set worker_id = excluded.worker_id, raw_error = excluded.raw_error, updated_at = pg_catalog.now()
  ), told as (
    -- The document shows the verdict of its newest generation; publishing writes 'ready' itself.
    update public.documents doc
       set state = (case s.v when 'discard' then 'failed' when 'cancel' then 'cancelled' else 'pending' end)::public.document_state,
           error_code = s.error_code, error_message = s.error_message, updated_at = pg_catalog.now()
      from settled s
     where s.v <> 'complete' and doc.id = s.document_id and doc.generation = s.generation
    returning doc.id
  ), turned as (
    -- After the documents, as in the object trigger: the other way round an overwrite deadlocked with a release.
    select ingest.take_turn(w.tenant_id, w.due_at)
      from (select s.tenant_id, pg_catalog.min(s.scheduled_at) as due_at from settled s where s.state = 'available'
             group by s.tenant_id order by s.tenant_id) w
     cross join (select pg_catalog.count(*) from told) first
  )
  select s.id, s.v from settled s cross join (select pg_catalog.count(*) from turned) t;
  if p_verdict = 'release' then perform ingest.wake(); end if;
end $$;

-- Charged, and tried again after p_delay; discarded when no attempt is left.
create function ingest.retry_job(p_job bigint, p_claim bigint, p_delay interval, p_code text, p_message text, p_raw text)
returns text language sql set search_path = '' as $$
  select verdict from ingest.settle_jobs(array[p_job], array[p_claim], 'retry', p_delay, p_code, p_message, p_raw)
$$;

-- Not charged: tried again after p_delay. p_bounded: discarded a day after the first such snooze.
-- p_growing: for an outage, whose end nobody announces: the delay grows with it, to 15 minutes at most.
--
-- A job that waits for a parse goes on at once when the parse has ended meanwhile. Its row is locked
-- for that: whoever ends the parse either sees this job asleep or is seen here.
create function ingest.snooze_job(p_job bigint, p_claim bigint, p_delay interval, p_code text, p_message text, p_raw text, p_bounded boolean, p_growing boolean default false)
returns text language plpgsql set search_path = '' as $$
declare
  v_verdict  text;
  v_parse    bigint;
  v_state    text;
begin
  select s.verdict into v_verdict
    from ingest.settle_jobs(array[p_job], array[p_claim], 'snooze', p_delay, p_code, p_message, p_raw, p_bounded, p_growing => p_growing) s;
  if v_verdict = 'snooze' then
    select p.id, p.state into v_parse, v_state
      from ingest.job_details w join ingest.parses p on p.id = w.awaiting_parse_id where w.job_id = p_job for share of p;
    if v_state in ('done', 'failed') then perform ingest.wake_for_parse(v_parse); end if;
  end if;
  return v_verdict;
end $$;

-- Not charged and available at once: our own shutdown, or an object that moved while it was read.
create function ingest.release_jobs(p_jobs bigint[], p_claims bigint[], p_code text)
returns setof bigint language sql set search_path = '' as $$
  select job_id from ingest.settle_jobs(p_jobs, p_claims, 'release', p_code => p_code)
$$;

-- Of no use any more: the object is gone or has a newer generation.
create function ingest.cancel_job(p_job bigint, p_claim bigint, p_code text, p_message text)
returns text language sql set search_path = '' as $$
  select verdict from ingest.settle_jobs(array[p_job], array[p_claim], 'cancel', p_code => p_code, p_message => p_message)
$$;

-- Given up: the dead letter.
create function ingest.discard_job(p_job bigint, p_claim bigint, p_code text, p_message text, p_raw text)
returns text language sql set search_path = '' as $$
  select verdict from ingest.settle_jobs(array[p_job], array[p_claim], 'discard', p_code => p_code, p_message => p_message, p_raw => p_raw)
$$;

-- An operator's retry: bring a discarded or cancelled job back, with five more attempts. Its history
-- stays, and its attempts go on counting. Raises IG008 when there is nothing to retry.
create function ingest.retry_discarded(p_job bigint)
returns void language plpgsql set search_path = '' as $$
declare
  v_job       public.jobs;
  v_document  public.documents;
  v_why       text;
begin
  select * into v_job from public.jobs where id = p_job for no key update;
  select * into v_document from public.documents where id = v_job.document_id;
  v_why := case
    when v_job.id is null then 'it does not exist, or was pruned; upload the file again'
    when v_job.finalized_at is null then pg_catalog.format('it is %s already', v_job.state)
    when v_job.state = 'completed' then 'it is completed; upload the file again to have it read again'
    when v_document.id is null then 'its file was deleted'
    when v_document.generation <> v_job.generation then pg_catalog.format(
      'its file was replaced meanwhile: this job is for generation %s, the file has %s', v_job.generation, v_document.generation)
    when v_document.published_generation = v_job.generation then 'its file is searchable already'
    when exists (select 1 from public.jobs j where j.document_id = v_job.document_id and j.generation = v_job.generation
                    and j.kind = v_job.kind and j.state in ('available', 'running'))
      then 'another job is doing this work already' end;
  if v_why is null then
    begin
      update public.jobs
         set state = 'available', finalized_at = null, max_attempts = attempt + 5, rescues = 0, snoozing_since = null,
             stage = null, progress = null, scheduled_at = pg_catalog.now(), error_code = null, error_message = null
       where id = p_job
      returning * into v_job;
    exception when unique_violation then
      v_why := 'another job is doing this work already';
    end;
  end if;
  if v_why is null then
    update public.documents set state = 'pending', error_code = null, error_message = null, updated_at = pg_catalog.now()
     where id = v_job.document_id and generation = v_job.generation;
    if not found then v_why := 'its file was deleted or replaced just now'; end if;
  end if;
  if v_why is not null then
    raise exception 'job % cannot be retried: %', p_job, v_why using errcode = 'IG008';
  end if;

  update ingest.job_details set awaiting_parse_id = null, updated_at = pg_catalog.now() where job_id = p_job;
  insert into public.job_events (job_id, document_id, generation, tenant_id, event, state, attempt, claim, detail)
  values (v_job.id, v_job.document_id, v_job.generation, v_job.tenant_id, 'retry', v_job.state, v_job.attempt, v_job.claim,
          '{"by": "operator"}');
  perform ingest.take_turn(v_job.tenant_id);
  perform ingest.wake();
end $$;

-- What became of this claim, for whoever lost the answer to a COMMIT: 'held', 'completed' or 'lost'.
create function ingest.claim_outcome(p_job bigint, p_claim bigint)
returns text language sql stable set search_path = '' as $$
  select case
    when exists (select 1 from ingest.leases where job_id = p_job and claim = p_claim) then 'held'
    when exists (select 1 from public.jobs where id = p_job and claim = p_claim and state = 'completed') then 'completed'
    else 'lost' end
$$;
