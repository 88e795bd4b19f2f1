-- What operators ask about embedding models, and the limits that a worker brings along in its settings.

-- How many published documents have a chunk without a vector of this model: words alone find them.
create function ingest.documents_without_vectors(p_model smallint)
returns bigint language sql stable set search_path = '' as $$
  select pg_catalog.count(distinct c.document_id) from public.chunks c
   where not exists (select 1 from ingest.embeddings e
                      where e.model_id = p_model and e.tenant_id = c.tenant_id and e.content_sha256 = c.content_sha256)
$$;

revoke execute on function ingest.documents_without_vectors(smallint) from public, anon, authenticated, service_role;
grant execute on function ingest.configure_rate_limit(text, integer, integer, text) to ingest_worker;
