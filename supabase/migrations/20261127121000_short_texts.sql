-- A short text is read in the worker in a millisecond, before anything is told: what was read, and that it is being
-- embedded, take one call. Told one by one they took five. It is made of the calls that it stands for: with statements
-- of its own it took the database 0.05 ms a chunk less, and every rule stood twice.

-- Keep what was read of these bytes, enter the stage embed with the stages that were left, and say which of its
-- contents have no vector of this model.
--
-- The outcome is 'done' (the parse is kept, by this call or an earlier one), 'failed' (known to be impossible: the
-- code and the message of then) or 'taken' (another job reads them now: this one is woken when they are done);
-- only 'done' enters the stage. Raises IG001 for a stale claim and IG002 for superseded work: whoever gets an
-- answer may spend money on it.
create function ingest.store_parse_and_begin_embed(
  p_job bigint, p_claim bigint, p_sha256 bytea, p_size bigint, p_mime_type text,
  p_parser text, p_version text, p_options text, p_tenant uuid,
  p_pages integer[], p_markdown text[], p_title text, p_notes text[],
  p_progress real, p_left jsonb, p_model smallint, p_keys bytea[]
)
returns table (parse_id bigint, outcome text, error_code text, error_message text, missing bytea[])
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  v_parse  record;
begin
  select * into v_parse
    from ingest.begin_parse(p_job, p_claim, p_sha256, p_size, p_mime_type, p_parser, p_version, p_options);
  if v_parse.outcome = 'parse' then
    perform ingest.store_parse(
      p_job, p_claim, v_parse.parse_id, p_tenant, p_pages, p_markdown, p_title, p_mime_type, p_notes);
  elsif v_parse.outcome <> 'done' then
    return query select v_parse.parse_id, v_parse.outcome, v_parse.error_code, v_parse.error_message, null::bytea[];
    return;
  end if;
  return query select v_parse.parse_id, 'done', null::text, null::text,
                      array(select ingest.begin_embed(p_job, p_claim, p_progress, p_left, p_model, p_tenant, p_keys));
end $$;

revoke execute on function ingest.store_parse_and_begin_embed(
  bigint, bigint, bytea, bigint, text, text, text, text, uuid, integer[], text[], text, text[], real, jsonb, smallint, bytea[]
) from public, anon, authenticated, service_role;
grant execute on function ingest.store_parse_and_begin_embed(
  bigint, bigint, bytea, bigint, text, text, text, text, uuid, integer[], text[], text, text[], real, jsonb, smallint, bytea[]
) to ingest_worker;
