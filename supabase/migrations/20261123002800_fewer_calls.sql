-- Two steps of a document in one call each: a round trip costs the worker and the database 0.2 ms of processor
-- apiece, and a small document's own work is not much more.

-- As before, but a look-up for each content whatever the planner believes: its plan for any array read all of the
-- tenant's keys, 1 ms at 500 vectors and 5 at 2,500, for every document. `limit 1` keeps it from being a join.
create or replace function ingest.missing_vectors(p_model smallint, p_tenant uuid, p_keys bytea[])
returns setof bytea language sql stable set search_path = '' as $$
  select k.content_sha256 from (select distinct unnest(p_keys) as content_sha256) k
    left join lateral (select true as there from ingest.embeddings e
                        where e.model_id = p_model and e.tenant_id = p_tenant and e.content_sha256 = k.content_sha256
                        limit 1) e on true
   where e.there is null
$$;

-- Begin to embed: enter the stage, with the stages that were left since the last call (null: it is entered already),
-- and say which of these contents have no vector of this model. Raises IG001 for a stale claim and IG002 for
-- superseded work: whoever gets an answer may spend money on it.
create function ingest.begin_embed(
  p_job bigint, p_claim bigint, p_progress real, p_left jsonb, p_model smallint, p_tenant uuid, p_keys bytea[]
)
returns setof bytea language plpgsql set search_path = '' as $$
begin
  if p_left is null then
    perform ingest.hold_current(p_job, p_claim);
  else
    perform ingest.enter_stage(p_job, p_claim, 'embed', p_progress, p_left);
  end if;
  return query select ingest.missing_vectors(p_model, p_tenant, p_keys);
end $$;

-- Keep a parse's pages, in order, and mark it done. Raises IG001 when the claim is stale or another took the parse over.
create function ingest.store_parse(
  p_job bigint, p_claim bigint, p_parse bigint, p_tenant uuid, p_pages integer[], p_markdown text[],
  p_title text, p_mime_type text, p_notes text[]
)
returns void language plpgsql set search_path = '' as $$
begin
  perform ingest.hold_claim(p_job, p_claim);
  insert into public.pages (parse_id, page, tenant_id, markdown)
  select p_parse, i.page, p_tenant, i.markdown from unnest(p_pages, p_markdown) as i(page, markdown);
  perform ingest.finish_parse(p_job, p_claim, p_parse, pg_catalog.cardinality(p_pages), p_title, p_mime_type, p_notes);
end $$;

revoke execute on function
  ingest.begin_embed(bigint, bigint, real, jsonb, smallint, uuid, bytea[]),
  ingest.store_parse(bigint, bigint, bigint, uuid, integer[], text[], text, text, text[])
  from public, anon, authenticated, service_role;
grant execute on function
  ingest.begin_embed(bigint, bigint, real, jsonb, smallint, uuid, bytea[]),
  ingest.store_parse(bigint, bigint, bigint, uuid, integer[], text[], text, text, text[])
  to ingest_worker;
