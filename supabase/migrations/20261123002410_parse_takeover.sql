-- What the rest of the queue knows of parses that are sent away: who may send one again, who is woken,
-- and what is swept. Grants stay as they are.

-- Say what to do about these bytes: 'parse' (this claim does it), 'done' (its pages are there),
-- 'failed' (known to be impossible), 'waiting' (sent away, see remote_ref) or 'taken' (another
-- job parses them now: this one is woken when they are done).
--
-- The document notes the content's hash and the parse, so that the sweep keeps both. A failed parse
-- stays failed, also for the job that sent it: a manual retry frees the row (retry_discarded).
create or replace function ingest.begin_parse(
  p_job bigint, p_claim bigint, p_sha256 bytea, p_size bigint, p_mime_type text,
  p_parser text, p_version text, p_options text
)
returns table (parse_id bigint, outcome text, remote_ref text, error_code text, error_message text)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  v_job    public.jobs;
  v_parse  ingest.parses;
  v_mine   boolean;
begin
  perform ingest.hold_claim(p_job, p_claim);
  select * into v_job from public.jobs j where j.id = p_job;

  loop
    insert into ingest.parses as p (tenant_id, content_sha256, parser, parser_version, options, submitted_job, submitted_by)
    values (v_job.tenant_id, p_sha256, p_parser, p_version, p_options, p_job, p_claim)
    on conflict (tenant_id, content_sha256, parser, parser_version, options) do nothing
    returning * into v_parse;
    v_mine := found;
    exit when found;
    select * into v_parse from ingest.parses p
     where p.tenant_id = v_job.tenant_id and p.content_sha256 = p_sha256
       and p.parser = p_parser and p.parser_version = p_version and p.options = p_options
       for no key update;
    exit when found;                                       -- not found: swept between the two statements
  end loop;

  if not v_mine then
    v_mine := v_parse.state = 'submitting' and not exists (
                select 1 from ingest.leases l where l.job_id = v_parse.submitted_job and l.claim = v_parse.submitted_by);
    if v_mine then
      update ingest.parses p set submitted_job = p_job, submitted_by = p_claim, next_poll_at = null where p.id = v_parse.id
      returning * into v_parse;
    end if;
  end if;

  update public.documents d
     set parse_id = v_parse.id, content_sha256 = p_sha256, size = p_size, mime_type = p_mime_type, updated_at = pg_catalog.now()
   where d.id = v_job.document_id and d.generation = v_job.generation;
  if not found then
    raise exception 'job % is superseded', p_job using errcode = 'IG002';
  end if;

  if not v_mine and v_parse.state in ('submitting', 'waiting') then
    insert into ingest.job_details (job_id, awaiting_parse_id) values (p_job, v_parse.id)
    on conflict (job_id) do update set awaiting_parse_id = excluded.awaiting_parse_id, updated_at = pg_catalog.now();
  else
    update ingest.job_details set awaiting_parse_id = null where job_id = p_job and awaiting_parse_id is not null;
  end if;
  return query select v_parse.id,
    case when v_mine then 'parse' when v_parse.state = 'submitting' then 'taken' else v_parse.state end,
    v_parse.remote_ref, v_parse.error_code, v_parse.error_message;
end $$;

-- Not charged: tried again after p_delay. p_bounded: discarded a day after the first such snooze.
-- p_growing: for an outage, whose end nobody announces: the delay grows with it, to 15 minutes at most.
--
-- A job that waits for a parse goes on at once when the parse has ended meanwhile, or has nobody who
-- sends it any more. Its row is locked for that: whoever ends the parse either sees this job asleep or is seen here.
create or replace function ingest.snooze_job(p_job bigint, p_claim bigint, p_delay interval, p_code text, p_message text, p_raw text, p_bounded boolean, p_growing boolean default false)
returns text language plpgsql set search_path = '' as $$
declare
  v_verdict  text;
  v_parse    ingest.parses;
begin
  select s.verdict into v_verdict
    from ingest.settle_jobs(array[p_job], array[p_claim], 'snooze', p_delay, p_code, p_message, p_raw, p_bounded, p_growing => p_growing) s;
  if v_verdict = 'snooze' then
    select p.* into v_parse
      from ingest.job_details w join ingest.parses p on p.id = w.awaiting_parse_id where w.job_id = p_job for share of p;
    if v_parse.state in ('done', 'failed') or v_parse.state = 'submitting' and not exists (
         select 1 from ingest.leases l where l.job_id = v_parse.submitted_job and l.claim = v_parse.submitted_by) then
      perform ingest.wake_for_parse(v_parse.id);
    end if;
  end if;
  return v_verdict;
end $$;

-- An operator's retry: bring a discarded or cancelled job back, with five more attempts. Its history
-- stays, its attempts go on counting, and a failed parse of its bytes is forgotten. Raises IG008 when
-- there is nothing to retry.
create or replace function ingest.retry_discarded(p_job bigint)
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

  -- What could not be parsed is parsed again, whichever document's job had tried it: nobody's, so the first that comes.
  update ingest.parses p
     set state = 'submitting', submitted_by = 0, remote_ref = null, submitted_at = null, resubmits = 0,
         error_code = null, error_message = null, finished_at = null
    from public.documents d
   where d.id = v_job.document_id and p.id = d.parse_id and p.state = 'failed';
  update ingest.job_details set awaiting_parse_id = null, updated_at = pg_catalog.now() where job_id = p_job;
  insert into public.job_events (job_id, document_id, generation, tenant_id, event, state, attempt, claim, detail)
  values (v_job.id, v_job.document_id, v_job.generation, v_job.tenant_id, 'retry', v_job.state, v_job.attempt, v_job.claim,
          '{"by": "operator"}');
  perform ingest.take_turn(v_job.tenant_id);
  perform ingest.wake();
end $$;

-- Parses that no document publishes or works on, those that were sent away among them. A parse that a
-- job has just found is kept by the document that names it; p_age covers the moment between the two.
create or replace function ingest.sweep_parses(p_age interval default interval '1 hour', p_limit integer default 100)
returns integer language plpgsql set search_path = '' as $$
declare
  v_ids      bigint[];
  v_removed  integer;
begin
  -- Locked first and judged again by the next statement's snapshot: begin_parse locks the row too.
  select pg_catalog.array_agg(l.id) into v_ids from (
    select p.id from ingest.parses p
     where p.created_at < pg_catalog.now() - p_age
       and (p.state in ('done', 'failed', 'waiting') or p.state = 'submitting' and not exists (   -- its submitter died or was cancelled
              select 1 from ingest.leases l where l.job_id = p.submitted_job and l.claim = p.submitted_by))
       and not exists (select 1 from public.documents d where d.parse_id = p.id)
       and not exists (select 1 from public.documents d where d.published_parse_id = p.id)
     order by p.id limit p_limit for update skip locked) l;
  delete from ingest.parses p
   where p.id = any (v_ids)
     and not exists (select 1 from public.documents d where d.parse_id = p.id)
     and not exists (select 1 from public.documents d where d.published_parse_id = p.id);
  get diagnostics v_removed = row_count;
  return v_removed;
end $$;
