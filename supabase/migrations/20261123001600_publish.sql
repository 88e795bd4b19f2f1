-- Publish: one short fenced transaction in one call: settle the claim, lock the vectors, swap the
-- chunks, check the generation. The chunks come as arrays, one a column, in the order of the document;
-- a heading path is its headings with line ends between them. Copied into a temporary table first they
-- would cost four round trips more, which are most of what a small document costs.
--
-- The document's row is locked last, by the update that checks its generation: 2,000 chunks take 3 s,
-- and the object trigger gives up after 2, which would cost an overwrite its job and a move its name.
-- Until then only the chunks' foreign key holds the row, which lets both pass.
--
-- Returns 'published', or 'already' when this same claim had done it (the answer to its COMMIT was
-- lost). Raises IG001 stale claim, IG002 superseded, IG003 vectors missing (go back to embed); each
-- rolls everything back, the lease included.

create function ingest.publish(
  p_job bigint, p_claim bigint, p_model smallint, p_parse bigint, p_title text, p_left jsonb, p_detail jsonb,
  p_page_starts integer[], p_page_ends integer[], p_char_starts integer[], p_char_ends integer[], p_token_counts integer[],
  p_heading_paths text[], p_contexts text[], p_contents text[], p_keys bytea[]
)
returns text language plpgsql set search_path = '' set jit = off as $$
declare
  v_job        public.jobs;
  v_parse      ingest.parses;
  v_chunks     integer;
  v_keys       integer;
  v_locked     integer;
begin
  -- The publish stage ends with the job, so its event is the completion.
  if not exists (select 1 from ingest.settle_jobs(array[p_job], array[p_claim], 'complete', p_detail => p_detail)) then
    if ingest.claim_outcome(p_job, p_claim) = 'completed' then return 'already'; end if;
    raise exception 'claim % on job % is stale', p_claim, p_job using errcode = 'IG001';
  end if;
  select * into v_job from public.jobs where id = p_job;
  perform ingest.note_stages(v_job, p_left);

  -- Looked at first only to spare the work.
  if not exists (select 1 from public.documents where id = v_job.document_id and generation = v_job.generation) then
    raise exception 'job % is superseded', p_job using errcode = 'IG002';
  end if;
  select * into v_parse from ingest.parses where id = p_parse and tenant_id = v_job.tenant_id and state = 'done';
  if not found then
    raise exception 'parse % of job % is not done', p_parse, p_job using errcode = 'IG005';
  end if;

  select pg_catalog.count(distinct k) into v_keys from pg_catalog.unnest(p_keys) k;
  select pg_catalog.count(*) into v_locked from (
    select 1 from ingest.embeddings e
     where e.model_id = p_model and e.tenant_id = v_job.tenant_id
       and e.content_sha256 = any (p_keys)
     order by e.content_sha256
       for key share of e) l;
  if v_locked <> v_keys then
    raise exception '% of % vectors are missing', v_keys - v_locked, v_keys using errcode = 'IG003';
  end if;

  delete from public.chunks where document_id = v_job.document_id;
  insert into public.chunks (document_id, tenant_id, ordinal, page_start, page_end, char_start, char_end, token_count,
                             language, heading_path, context, content, content_sha256)
  select v_job.document_id, v_job.tenant_id, i.nth - 1, i.page_start, i.page_end, i.char_start, i.char_end, i.token_count,
         d.language, pg_catalog.string_to_array(i.heading_path, E'\n'), i.context, i.content, i.key
    from unnest(p_page_starts, p_page_ends, p_char_starts, p_char_ends, p_token_counts, p_heading_paths, p_contexts, p_contents, p_keys)
         with ordinality as i(page_start, page_end, char_start, char_end, token_count, heading_path, context, content, key, nth)
   cross join (select language from public.documents where id = v_job.document_id) d
   order by i.nth;
  get diagnostics v_chunks = row_count;

  update public.documents d
     set state = 'ready', published_generation = v_job.generation, published_parse_id = p_parse, parse_id = p_parse,
         title = p_title, page_count = v_parse.page_count, mime_type = coalesce(v_parse.mime_type, d.mime_type), chunk_count = v_chunks,
         error_code = null, error_message = null, published_at = pg_catalog.now(), updated_at = pg_catalog.now()
   where d.id = v_job.document_id and d.generation = v_job.generation;
  if not found then
    raise exception 'job % is superseded', p_job using errcode = 'IG002';
  end if;
  return 'published';
end $$;
