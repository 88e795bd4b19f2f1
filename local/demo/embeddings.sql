-- The chunks that have a vector of the model that search uses, counted by the database itself.
select count(*)
  from public.chunks c
 where exists (
   select from ingest.embeddings e join ingest.embedding_models m on m.id = e.model_id and m.active
    where e.tenant_id = c.tenant_id and e.content_sha256 = c.content_sha256)
