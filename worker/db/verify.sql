-- What `sluice verify` reads of a target, by name.

-- name: target_facts
select ingest.target_facts();

-- name: rows_of
select ingest.rows_of($1::uuid[]);

-- name: users_of_run
select users_of_run from ingest.users_of_run($1::text);

-- name: public_relations
select c.relname as name, exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped) as has_tenant
  from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm') order by c.relname;

-- name: verify_document
select d.id, d.tenant_id, d.name, d.state::text as state, d.generation, d.published_generation, d.published_parse_id, d.size,
       d.mime_type, d.content_sha256, d.page_count, d.chunk_count, d.error_code, p.parser, p.parser_version, p.options,
       p.page_count as parsed_pages
  from public.documents d left join ingest.parses p on p.id = d.published_parse_id where d.id = $1::uuid;

-- name: verify_jobs
select id, generation, state::text as state, attempt, rescues, snoozes, created_at, started_at, finalized_at
  from public.jobs where document_id = $1::uuid order by generation, id;

-- name: verify_events
select id, at, job_id, generation, event, stage, claim, extract(epoch from took)::float8 as seconds, error_code, detail
  from public.job_events where document_id = $1::uuid order by id;

-- name: verify_chunks
select c.id, c.ordinal, c.page_start, c.page_end, c.char_start, c.char_end, c.token_count, c.context, c.content, c.content_sha256
  from public.chunks c where c.document_id = $1::uuid order by c.ordinal;

-- name: verify_vectors
select c.ordinal, m.provider, m.name, m.dimensions, m.active, e.embedding
  from public.chunks c join ingest.embeddings e on e.tenant_id = c.tenant_id and e.content_sha256 = c.content_sha256
  join ingest.embedding_models m on m.id = e.model_id where c.document_id = $1::uuid order by c.ordinal, m.id;

-- name: verify_unused_vectors
select count(*) as unused, count(*) filter (where e.created_at < now() - interval '25 hours') as overdue
  from ingest.embeddings e where e.tenant_id = $1::uuid
   and not exists (select from public.chunks c where c.tenant_id = e.tenant_id and c.content_sha256 = e.content_sha256);

-- name: verify_usage
select document_id, provider, model, kind, sum(pages)::bigint as pages, sum(tokens)::bigint as tokens, sum(requests)::bigint as requests, sum(money) as money
  from ingest.usage where tenant_id = $1::uuid group by 1, 2, 3, 4 order by 4, 2, 3, 1;
