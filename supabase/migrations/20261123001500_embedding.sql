-- The embed step: which texts have no vector yet, and the vectors as soon as they are there.

-- Of these contents, those without a vector of this model.
create function ingest.missing_vectors(p_model smallint, p_tenant uuid, p_keys bytea[])
returns setof bytea language sql stable set search_path = '' as $$
  select k.content_sha256 from (select distinct unnest(p_keys) as content_sha256) k
   where not exists (select 1 from ingest.embeddings e
                      where e.model_id = p_model and e.tenant_id = p_tenant and e.content_sha256 = k.content_sha256)
$$;

-- Keep the vectors that stand in the temporary table incoming_vectors (content_sha256, embedding),
-- in key order, so that two writers cannot wait for each other in a circle.
--
-- Not fenced by the claim: what was paid for is kept, whoever owns the job now. The key is the
-- content, so it cannot be wrong for anybody else.
create function ingest.store_vectors(p_model smallint, p_tenant uuid)
returns integer language plpgsql set search_path = '' as $$
declare
  v_stored integer;
begin
  insert into ingest.embeddings (model_id, tenant_id, content_sha256, embedding)
  select p_model, p_tenant, i.content_sha256, i.embedding from pg_temp.incoming_vectors i order by i.content_sha256
  on conflict (model_id, tenant_id, content_sha256) do nothing;
  get diagnostics v_stored = row_count;
  return v_stored;
end $$;
