-- The parse step: who parses these bytes, and the pages when somebody has.

-- Say what to do about these bytes: 'parse' (this claim does it), 'done' (its pages are there),
-- 'failed' (known to be impossible), 'waiting' (sent away, see remote_ref) or 'taken' (another
-- job parses them now: this one is woken when they are done).
--
-- The document notes the content's hash and the parse, so that the sweep keeps both. A failed parse
-- is tried again only by the job that made it: that is what a manual retry comes back as.
create function ingest.begin_parse(
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
    v_mine := (v_parse.state = 'submitting' and not exists (
                 select 1 from ingest.leases l where l.job_id = v_parse.submitted_job and l.claim = v_parse.submitted_by))
           or (v_parse.state = 'failed' and v_parse.submitted_job = p_job);
    if v_mine then
      update ingest.parses p
         set state = 'submitting', submitted_job = p_job, submitted_by = p_claim, remote_ref = null, next_poll_at = null,
             error_code = null, error_message = null, finished_at = null
       where p.id = v_parse.id
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

-- Wake the jobs that wait for this parse. Rows that somebody holds are left to their timer.
create function ingest.wake_for_parse(p_parse bigint)
returns integer language plpgsql set search_path = '' as $$
declare
  v_woken integer;
begin
  with waiting as (
    select j.id from ingest.job_details w join public.jobs j on j.id = w.job_id
     where w.awaiting_parse_id = p_parse and j.state = 'available'
     order by j.id
       for no key update of j skip locked
  ), woken as (
    update public.jobs j set scheduled_at = pg_catalog.now() from waiting
     where j.id = waiting.id and j.scheduled_at > pg_catalog.now()
    returning j.tenant_id
  ), turned as (
    select ingest.take_turn(w.tenant_id) from (select distinct tenant_id from woken) w
  )
  select (select pg_catalog.count(*) from woken) + 0 * (select pg_catalog.count(*) from turned) into v_woken;
  if v_woken > 0 then perform ingest.wake(); end if;
  return v_woken;
end $$;

-- The pages have been copied in this transaction: mark the parse done. Raises IG001 when the claim
-- is stale or another took the parse over.
create function ingest.finish_parse(
  p_job bigint, p_claim bigint, p_parse bigint, p_pages integer, p_title text, p_mime_type text, p_notes text[]
)
returns void language plpgsql set search_path = '' as $$
begin
  perform ingest.hold_claim(p_job, p_claim);
  update public.jobs set rescues = 0, snoozing_since = null where id = p_job and claim = p_claim and state = 'running';
  update ingest.parses
     set state = 'done', page_count = p_pages, title = p_title, mime_type = p_mime_type, notes = p_notes,
         finished_at = pg_catalog.now(), next_poll_at = null
   where id = p_parse and submitted_job = p_job and submitted_by = p_claim and state in ('submitting', 'waiting');
  if not found then
    raise exception 'claim % on job % is stale: parse % is not its own', p_claim, p_job, p_parse using errcode = 'IG001';
  end if;
  perform ingest.wake_for_parse(p_parse);
end $$;

-- These bytes cannot be parsed: remember it for every document that has them.
create function ingest.fail_parse(p_job bigint, p_claim bigint, p_parse bigint, p_code text, p_message text)
returns void language plpgsql set search_path = '' as $$
begin
  perform ingest.hold_claim(p_job, p_claim);
  update ingest.parses
     set state = 'failed', error_code = p_code, error_message = p_message, finished_at = pg_catalog.now(), next_poll_at = null
   where id = p_parse and submitted_job = p_job and submitted_by = p_claim and state in ('submitting', 'waiting');
  if not found then
    raise exception 'claim % on job % is stale: parse % is not its own', p_claim, p_job, p_parse using errcode = 'IG001';
  end if;
  perform ingest.wake_for_parse(p_parse);
end $$;
