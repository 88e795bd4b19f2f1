-- The vectors of one answer, kept in one statement: a request joins texts of several documents and tenants.
--
-- This takes the place of the function that stored one tenant's vectors. A COPY for each document of an
-- answer would be a transaction for each of them.

drop function ingest.store_vectors(smallint, uuid);

-- Keep the vectors that stand in the temporary table incoming_embeddings (tenant_id, content_sha256,
-- embedding), in key order, so that two writers cannot wait for each other in a circle.
--
-- Not fenced by claims: what was paid for is kept, whoever owns the jobs now. The key is the content, so
-- it cannot be wrong for anybody else of the tenant.
create function ingest.store_embeddings(p_model smallint)
returns integer language plpgsql set search_path = '' as $$
declare
  v_stored integer;
begin
  insert into ingest.embeddings (model_id, tenant_id, content_sha256, embedding)
  select p_model, i.tenant_id, i.content_sha256, i.embedding from pg_temp.incoming_embeddings i
   order by i.tenant_id, i.content_sha256
  on conflict (model_id, tenant_id, content_sha256) do nothing;
  get diagnostics v_stored = row_count;
  return v_stored;
end $$;

-- An attempt that is about to be snoozed got further all the same: some of its vectors are stored. A day of
-- waiting begins anew, or a large document under a low limit would be given up while it makes progress.
create function ingest.note_embedded(p_job bigint, p_claim bigint)
returns void language sql set search_path = '' as $$
  update public.jobs set snoozing_since = null
   where id = p_job and claim = p_claim and state = 'running' and snoozing_since is not null
$$;

revoke execute on function ingest.store_embeddings(smallint), ingest.note_embedded(bigint, bigint)
  from public, anon, authenticated, service_role;
grant execute on function ingest.store_embeddings(smallint), ingest.note_embedded(bigint, bigint) to ingest_worker;
