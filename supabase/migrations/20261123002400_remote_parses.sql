-- Parses that are sent away: the life of a row while another service reads the file.
--
--   submitting ──note_submitted──► waiting ──finish_remote_parse──► done
--        ▲                          │ │ └────fail_remote_parse────► failed ◄── expire_parses
--        └─────resubmit_parse───────┘ └── poll_again: waiting, looked at later
--
-- A waiting row belongs to nobody: its submitter may die, be cancelled or lose its document, and any
-- worker's poller carries it on. What a poller writes is fenced by the remote reference, so that the
-- answer to an earlier submission changes nothing. Nothing is locked while a service is asked: the
-- poll's lease is the row's next_poll_at, which take_polls moves ahead.

alter table ingest.parses
  add column submitted_at timestamptz,                     -- when remote_ref was stored
  add column resubmits    smallint not null default 0,     -- how often the service lost it and it was sent again
  add column fidelity     real check (fidelity between 0 and 1);   -- share of the text layer that came back; null: not compared

-- The service took the file: store its reference before anybody polls. The job sleeps until the parse
-- ends; p_first_poll is when to look first, unless the service has said already that it is done.
--
-- Fenced by the claim that the row names, not by its lease: whoever takes a parse over writes its own
-- claim there, and until then even a job that lost its lease does well to leave what was paid for.
-- Raises IG001 when another took it over.
create function ingest.note_submitted(p_job bigint, p_claim bigint, p_parse bigint, p_ref text, p_first_poll interval)
returns void language plpgsql set search_path = '' as $$
begin
  -- Durable progress: an earlier worker's death is no sign of a poison document, and waiting begins anew.
  update public.jobs set rescues = 0, snoozing_since = null where id = p_job and claim = p_claim and state = 'running';
  update ingest.parses
     set state = 'waiting', remote_ref = p_ref, submitted_at = pg_catalog.now(),
         next_poll_at = least(next_poll_at, pg_catalog.now() + p_first_poll)
   where id = p_parse and submitted_job = p_job and submitted_by = p_claim and state = 'submitting';
  if not found then
    raise exception 'claim % on job % is stale: parse % is not its own', p_claim, p_job, p_parse using errcode = 'IG001';
  end if;
  insert into ingest.job_details (job_id, awaiting_parse_id)
  select j.id, p_parse from public.jobs j where j.id = p_job and j.claim = p_claim
  on conflict (job_id) do update set awaiting_parse_id = excluded.awaiting_parse_id, updated_at = pg_catalog.now();
end $$;

-- Take parses of this parser that are due: nobody else gets them for p_lease. One whose documents are
-- all gone is not asked for any more; the sweep removes it. Job, claim and document are those that sent
-- it; where that job is pruned, the document is another that has these bytes.
create function ingest.take_polls(p_parser text, p_limit integer, p_lease interval)
returns table (parse_id bigint, tenant_id uuid, job_id bigint, claim bigint, document_id uuid, remote_ref text, waited interval)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
  if (p_limit between 1 and 1000 and p_lease > interval '0') is not true then
    raise exception 'take_polls: limit % or lease % is out of range', p_limit, p_lease using errcode = '22023';
  end if;
  return query
  with due as (
    select p.id from ingest.parses p
     where p.state = 'waiting' and p.parser = p_parser and p.next_poll_at <= pg_catalog.clock_timestamp()
       and exists (select 1 from public.documents d where d.parse_id = p.id)
     order by p.next_poll_at limit p_limit for no key update of p skip locked
  )
  update ingest.parses p set next_poll_at = pg_catalog.clock_timestamp() + p_lease
    from due where p.id = due.id
  returning p.id, p.tenant_id, p.submitted_job, p.submitted_by,
    coalesce((select j.document_id from public.jobs j where j.id = p.submitted_job),
             (select d.id from public.documents d where d.parse_id = p.id limit 1)),
    p.remote_ref, pg_catalog.clock_timestamp() - p.submitted_at;
end $$;

-- Lock a parse that still waits for this answer, until the transaction ends; false when it does not.
-- Called before its pages are copied, so that of two pollers one copies.
create function ingest.hold_remote_parse(p_parse bigint, p_ref text)
returns boolean language plpgsql set search_path = '' as $$
begin
  perform 1 from ingest.parses where id = p_parse and state = 'waiting' and remote_ref = p_ref for no key update;
  return found;
end $$;

-- Look again after p_delay; false when it waits no longer.
create function ingest.poll_again(p_parse bigint, p_ref text, p_delay interval)
returns boolean language plpgsql set search_path = '' as $$
begin
  update ingest.parses set next_poll_at = pg_catalog.clock_timestamp() + p_delay
   where id = p_parse and state = 'waiting' and remote_ref = p_ref;
  return found;
end $$;

-- The pages have been copied in this transaction: done, and everybody who waits is woken.
create function ingest.finish_remote_parse(p_parse bigint, p_ref text, p_pages integer, p_title text, p_notes text[])
returns boolean language plpgsql set search_path = '' as $$
begin
  update ingest.parses
     set state = 'done', page_count = p_pages, title = p_title, mime_type = options::jsonb ->> 'mime_type', notes = p_notes,
         finished_at = pg_catalog.now(), next_poll_at = null
   where id = p_parse and state = 'waiting' and remote_ref = p_ref;
  if not found then return false; end if;
  perform ingest.wake_for_parse(p_parse);
  return true;
end $$;

-- The service cannot read these bytes: remember it for every document that has them.
create function ingest.fail_remote_parse(p_parse bigint, p_ref text, p_code text, p_message text)
returns boolean language plpgsql set search_path = '' as $$
begin
  update ingest.parses
     set state = 'failed', error_code = p_code, error_message = p_message, finished_at = pg_catalog.now(), next_poll_at = null
   where id = p_parse and state = 'waiting' and remote_ref = p_ref;
  if not found then return false; end if;
  perform ingest.wake_for_parse(p_parse);
  return true;
end $$;

-- The service knows nothing of it any more, or failed by itself: the first job that comes sends it
-- once more. After p_limit times it has failed, with this code. Returns 'submitting', 'failed', or
-- null when the parse does not wait for this answer.
create function ingest.resubmit_parse(p_parse bigint, p_ref text, p_code text, p_message text, p_limit integer default 1)
returns text language plpgsql set search_path = '' as $$
begin
  update ingest.parses
     set state = 'submitting', submitted_by = 0, remote_ref = null, next_poll_at = null, submitted_at = null,
         resubmits = resubmits + 1
   where id = p_parse and state = 'waiting' and remote_ref = p_ref and resubmits < p_limit;
  if found then
    perform ingest.wake_for_parse(p_parse);
    return 'submitting';
  end if;
  return case when ingest.fail_remote_parse(p_parse, p_ref, p_code, p_message) then 'failed' end;
end $$;

-- Give up parses that were sent longer ago than p_age, of whatever parser; returns how many.
create function ingest.expire_parses(p_age interval, p_limit integer default 100)
returns integer language plpgsql set search_path = '' as $$
declare
  v_parse    ingest.parses;
  v_expired  integer := 0;
begin
  for v_parse in select * from ingest.parses p
                  where p.state = 'waiting' and p.submitted_at < pg_catalog.now() - p_age
                  order by p.id limit p_limit for no key update skip locked
  loop
    perform ingest.fail_remote_parse(v_parse.id, v_parse.remote_ref, 'parse_too_slow',
      'The service that reads the files did not finish this one in time. Try it again later, or split it and upload the parts.');
    v_expired := v_expired + 1;
  end loop;
  return v_expired;
end $$;

-- Keep how much of the file's own text came back, and what to say of it; the first comparison stays.
create function ingest.note_fidelity(p_parse bigint, p_fidelity real, p_note text)
returns boolean language plpgsql set search_path = '' as $$
begin
  update ingest.parses set fidelity = p_fidelity, notes = case when p_note is null then notes else notes || p_note end
   where id = p_parse and state = 'done' and fidelity is null;
  return found;
end $$;

revoke execute on function
  ingest.note_submitted(bigint, bigint, bigint, text, interval),
  ingest.take_polls(text, integer, interval),
  ingest.hold_remote_parse(bigint, text),
  ingest.poll_again(bigint, text, interval),
  ingest.finish_remote_parse(bigint, text, integer, text, text[]),
  ingest.fail_remote_parse(bigint, text, text, text),
  ingest.resubmit_parse(bigint, text, text, text, integer),
  ingest.expire_parses(interval, integer),
  ingest.note_fidelity(bigint, real, text)
  from public, anon, authenticated, service_role;
grant execute on function
  ingest.note_submitted(bigint, bigint, bigint, text, interval),
  ingest.take_polls(text, integer, interval),
  ingest.hold_remote_parse(bigint, text),
  ingest.poll_again(bigint, text, interval),
  ingest.finish_remote_parse(bigint, text, integer, text, text[]),
  ingest.fail_remote_parse(bigint, text, text, text),
  ingest.resubmit_parse(bigint, text, text, text, integer),
  ingest.expire_parses(interval, integer),
  ingest.note_fidelity(bigint, real, text)
  to ingest_worker;
