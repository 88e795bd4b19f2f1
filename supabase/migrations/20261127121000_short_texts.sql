-- A short text is read in the worker in a millisecond, before anything is told: what was read, and that it is being
-- embedded, take one call. Read, begun and entered one by one they took five, half of what such a document costs.

-- Keep what was read of these bytes, enter the stage embed with the stages that were left, and say which of its
-- contents have no vector of this model.
--
-- The outcome is 'done' (the parse is kept, by this call or an earlier one), 'failed' (known to be impossible: the
-- code and the message of then) or 'taken' (another job reads them now: this one is woken when they are done);
-- only 'done' enters the stage. Raises IG001 for a stale claim and IG002 for superseded work: whoever gets an
-- answer may spend money on it.
create function ingest.store_parse_and_begin_embed(
  p_job bigint, p_claim bigint, p_sha256 bytea, p_size bigint, p_mime_type text,
  p_parser text, p_version text, p_options text,
  p_pages integer[], p_markdown text[], p_title text, p_notes text[],
  p_progress real, p_left jsonb, p_model smallint, p_keys bytea[]
)
returns table (parse_id bigint, outcome text, error_code text, error_message text, missing bytea[])
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  v_job    public.jobs;
  v_parse  ingest.parses;
  v_kept   bigint;                                         -- the parse whose pages are ours to keep
begin
  perform 1 from ingest.leases l where l.job_id = p_job and l.claim = p_claim for key share;
  if not found then
    raise exception 'claim % on job % is stale', p_claim, p_job using errcode = 'IG001';
  end if;
  select * into v_job from public.jobs j where j.id = p_job;

  loop
    insert into ingest.parses as p (tenant_id, content_sha256, parser, parser_version, options, submitted_job, submitted_by,
                                    state, page_count, title, mime_type, notes, finished_at)
    values (v_job.tenant_id, p_sha256, p_parser, p_version, p_options, p_job, p_claim,
            'done', pg_catalog.cardinality(p_pages), p_title, p_mime_type, p_notes, pg_catalog.now())
    on conflict (tenant_id, content_sha256, parser, parser_version, options) do nothing
    returning * into v_parse;
    v_kept := v_parse.id;
    exit when found;
    select * into v_parse from ingest.parses p
     where p.tenant_id = v_job.tenant_id and p.content_sha256 = p_sha256
       and p.parser = p_parser and p.parser_version = p_version and p.options = p_options
       for no key update;
    exit when found;                                       -- not found: swept between the two statements
  end loop;

  if v_parse.state = 'submitting' and not exists (
       select 1 from ingest.leases l where l.job_id = v_parse.submitted_job and l.claim = v_parse.submitted_by) then
    v_kept := v_parse.id;
    update ingest.parses p
       set state = 'done', submitted_job = p_job, submitted_by = p_claim, next_poll_at = null,
           page_count = pg_catalog.cardinality(p_pages), title = p_title, mime_type = p_mime_type, notes = p_notes,
           finished_at = pg_catalog.now()
     where p.id = v_kept
    returning * into v_parse;
    perform ingest.wake_for_parse(v_kept);
  end if;
  if v_kept is not null then
    insert into public.pages (parse_id, page, tenant_id, markdown)
    select v_kept, i.page, v_job.tenant_id, i.markdown from unnest(p_pages, p_markdown) as i(page, markdown);
  end if;

  update public.documents d
     set parse_id = v_parse.id, content_sha256 = p_sha256, size = p_size, mime_type = p_mime_type, updated_at = pg_catalog.now()
   where d.id = v_job.document_id and d.generation = v_job.generation;
  if not found then
    raise exception 'job % is superseded', p_job using errcode = 'IG002';
  end if;

  if v_parse.state in ('submitting', 'waiting') then
    insert into ingest.job_details (job_id, awaiting_parse_id) values (p_job, v_parse.id)
    on conflict (job_id) do update set awaiting_parse_id = excluded.awaiting_parse_id, updated_at = pg_catalog.now();
    return query select v_parse.id, 'taken', null::text, null::text, null::bytea[];
    return;
  end if;
  update ingest.job_details w set awaiting_parse_id = null where w.job_id = p_job and w.awaiting_parse_id is not null;
  if v_parse.state = 'failed' then
    return query select v_parse.id, 'failed', v_parse.error_code, v_parse.error_message, null::bytea[];
    return;
  end if;

  -- A parse that was kept is progress, as in finish_parse; one that was there is not.
  update public.jobs j
     set stage = 'embed', progress = p_progress,
         rescues = case when v_kept is null then j.rescues else 0 end,
         snoozing_since = case when v_kept is null then j.snoozing_since end
   where j.id = p_job and j.claim = p_claim and j.state = 'running'
  returning * into v_job;
  perform ingest.note_stages(v_job, p_left);
  return query select v_parse.id, 'done', null::text, null::text,
                      array(select ingest.missing_vectors(p_model, v_job.tenant_id, p_keys));
end $$;

-- Pages count for the month also where the parse is done from the beginning. At the commit: all documents of a
-- tenant add to one row, which would be held from the first statement of the call to its last.
create constraint trigger count_pages_at_once after insert on ingest.parses
  deferrable initially deferred for each row
  when (new.state = 'done' and new.page_count > 0) execute function ingest.count_pages();

revoke execute on function ingest.store_parse_and_begin_embed(
  bigint, bigint, bytea, bigint, text, text, text, text, integer[], text[], text, text[], real, jsonb, smallint, bytea[]
) from public, anon, authenticated, service_role;
grant execute on function ingest.store_parse_and_begin_embed(
  bigint, bigint, bytea, bigint, text, text, text, text, integer[], text[], text, text[], real, jsonb, smallint, bytea[]
) to ingest_worker;
