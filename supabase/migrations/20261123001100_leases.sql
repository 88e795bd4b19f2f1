-- Keeping what was claimed: renewal, the fence for checkpoints, and the stages of an attempt.

-- Renew all held leases in one statement. A pair that is not returned is lost: stop that work.
-- 'superseded' means that the lease is renewed but the document is gone or has a newer generation.
--
-- Rows that a settle holds are skipped, so one long publish cannot starve the rest; the caller leaves
-- out jobs that it is settling itself.
create function ingest.renew_leases(p_jobs bigint[], p_claims bigint[], p_lease interval)
returns table (job_id bigint, answer text) language sql set search_path = '' as $$
  with held as (
    select l.job_id from ingest.leases l join unnest(p_jobs, p_claims) as h(job_id, claim) using (job_id, claim)
       for no key update of l skip locked
  ), renewed as (
    update ingest.leases l set expires_at = pg_catalog.clock_timestamp() + p_lease
      from held where l.job_id = held.job_id
    returning l.job_id
  )
  select r.job_id, case when d.id is null then 'superseded' else 'ours' end
    from renewed r
    join public.jobs j on j.id = r.job_id
    left join public.documents d on d.id = j.document_id and d.generation = j.generation
$$;

-- Raise IG001 unless this claim still owns the job; else keep it so until the transaction ends.
-- Renewals pass the lock, rescue steps around it, settle waits for it.
create function ingest.hold_claim(p_job bigint, p_claim bigint)
returns void language plpgsql set search_path = '' as $$
begin
  perform 1 from ingest.leases where job_id = p_job and claim = p_claim for key share;
  if not found then
    raise exception 'claim % on job % is stale', p_claim, p_job using errcode = 'IG001';
  end if;
end $$;

-- Say whether a claimed job that must run alone has begun, or still waits for its worker's other jobs
-- to end. While it waits it has no stage, and the death of its worker is not held against it. Raises
-- IG001 for a stale claim.
create function ingest.mark_begun(p_job bigint, p_claim bigint, p_begun boolean)
returns void language plpgsql set search_path = '' as $$
begin
  perform ingest.hold_claim(p_job, p_claim);
  update public.jobs set stage = case when p_begun then 'fetch' end where id = p_job and claim = p_claim and state = 'running';
end $$;

-- Begin an attempt: say which object to read, as it is named now.
--
-- Definer, because storage.objects shows no rows to a role without a policy. Raises IG001 for a
-- stale claim and IG002 when the document is gone or has a newer generation. A null bucket_id says
-- that the document has no object any more.
create function ingest.begin_fetch(p_job bigint, p_claim bigint)
returns table (bucket_id text, name text, object_version text, size bigint, language text)
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  v_job       public.jobs;
  v_document  public.documents;
begin
  perform ingest.hold_claim(p_job, p_claim);
  select * into v_job from public.jobs j where j.id = p_job;
  update public.documents d set state = 'processing', error_code = null, error_message = null, updated_at = pg_catalog.now()
   where d.id = v_job.document_id and d.generation = v_job.generation
  returning * into v_document;
  if not found then
    raise exception 'job % is superseded', p_job using errcode = 'IG002';
  end if;
  return query
    select o.bucket_id, o.name, o.version, coalesce(ingest.object_size(o.metadata), v_document.size), v_document.language
      from (select 1) one left join storage.objects o on o.id = v_document.id;
end $$;

-- Hold the claim and look whether its work is still wanted: called before whatever costs money.
-- Raises IG001 for a stale claim, and IG002 when the document is gone or has a newer generation.
create function ingest.hold_current(p_job bigint, p_claim bigint)
returns void language plpgsql set search_path = '' as $$
begin
  perform ingest.hold_claim(p_job, p_claim);
  perform 1 from public.jobs j join public.documents d on d.id = j.document_id and d.generation = j.generation where j.id = p_job;
  if not found then
    raise exception 'job % is superseded', p_job using errcode = 'IG002';
  end if;
end $$;

-- Note stages that a job has left, in order: [{"stage", "seconds", "detail"}]. Short ones are noted
-- together, each at the time when it ended.
create function ingest.note_stages(p_job public.jobs, p_left jsonb)
returns void language sql set search_path = '' as $$
  insert into public.job_events (at, job_id, document_id, generation, tenant_id, event, state, stage, attempt, claim, took, detail)
  select pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => coalesce(pg_catalog.sum(s.seconds) over later, 0)),
         p_job.id, p_job.document_id, p_job.generation, p_job.tenant_id, 'stage', 'running', s.stage, p_job.attempt, p_job.claim,
         pg_catalog.make_interval(secs => s.seconds), s.detail
    from rows from (pg_catalog.jsonb_to_recordset(p_left) as (stage text, seconds double precision, detail jsonb))
         with ordinality as s(stage, seconds, detail, nth)
  window later as (order by s.nth rows between 1 following and unbounded following)
   order by s.nth
$$;

-- Enter a stage, and note those that were left since the last call. A detail holds counts, never text.
-- Raises IG001 for a stale claim and IG002 for superseded work.
create function ingest.enter_stage(p_job bigint, p_claim bigint, p_stage text, p_progress real, p_left jsonb)
returns void language plpgsql set search_path = '' as $$
declare
  v_job     public.jobs;
  v_before  text;
begin
  perform ingest.hold_current(p_job, p_claim);
  select stage into v_before from public.jobs where id = p_job;
  -- Every vector is stored: durable progress, after which an earlier worker's death is no sign of a
  -- poison document and a day of waiting begins anew. The parse stage says so in finish_parse, since
  -- an attempt that only finds the pages again has got no further.
  update public.jobs set stage = p_stage, progress = p_progress,
         rescues = case when v_before = 'embed' and p_stage <> 'embed' then 0 else rescues end,
         snoozing_since = case when v_before = 'embed' and p_stage <> 'embed' then null else snoozing_since end
   where id = p_job and claim = p_claim and state = 'running'
  returning * into v_job;
  perform ingest.note_stages(v_job, p_left);
end $$;

-- Move the progress bar inside a stage: no event. Raises IG001 for a stale claim and IG002 for superseded work.
create function ingest.report_progress(p_job bigint, p_claim bigint, p_progress real)
returns void language plpgsql set search_path = '' as $$
begin
  perform ingest.hold_current(p_job, p_claim);
  update public.jobs set progress = p_progress where id = p_job and claim = p_claim and state = 'running';
end $$;
