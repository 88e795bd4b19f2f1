-- Embedding models and vectors, keyed by content: the same text of a tenant is embedded once by a
-- model, whichever documents and generations hold it.
--
-- LIST partitions by model: another model's dimensions stay apart, and dropping a model leaves no
-- dead rows. STORAGE PLAIN keeps vectors in line (1536 dimensions, 2,500 rows: 1.9 ms against 6.4
-- ms TOASTed). No HNSW: its mere presence takes the plan, and its recall was 0.6 to 0.8 off topic;
-- exact per tenant is fast at the sizes that nearly all tenants have.

create table ingest.embedding_models (
  id          smallint generated always as identity primary key,
  provider    text not null,
  name        text not null,
  dimensions  integer not null check (dimensions between 1 and 4000),
  active      boolean not null default false,              -- the one that search uses
  created_at  timestamptz not null default now(),
  unique (provider, name, dimensions)
);
create unique index embedding_models_active_idx on ingest.embedding_models (active) where active;

create table ingest.embeddings (
  model_id        smallint not null references ingest.embedding_models (id),
  tenant_id       uuid not null,
  content_sha256  bytea not null check (octet_length(content_sha256) = 32),
  embedding       extensions.halfvec not null,
  created_at      timestamptz not null default now(),
  primary key (model_id, tenant_id, content_sha256)
) partition by list (model_id);
alter table ingest.embeddings alter column embedding set storage plain;

-- Register a model and make its partition; the id of one that exists already is returned.
create function ingest.add_embedding_model(p_provider text, p_name text, p_dimensions integer)
returns smallint language plpgsql set search_path = '' as $$
declare
  v_id smallint;
begin
  select id into v_id from ingest.embedding_models where provider = p_provider and name = p_name and dimensions = p_dimensions;
  if found then return v_id; end if;
  insert into ingest.embedding_models (provider, name, dimensions) values (p_provider, p_name, p_dimensions) returning id into v_id;
  execute pg_catalog.format(
    'create table ingest.embeddings_%s partition of ingest.embeddings (
       constraint dimensions_are_the_models check (extensions.vector_dims(embedding) = %s),
       constraint not_zero check (extensions.l2_norm(embedding) > 0)
     ) for values in (%s)', v_id, p_dimensions, v_id);
  execute pg_catalog.format('alter table ingest.embeddings_%s enable row level security', v_id);
  return v_id;
end $$;

-- Let search use this model. Documents whose chunks have no vector of it are found by text only.
create function ingest.activate_embedding_model(p_id smallint)
returns void language plpgsql set search_path = '' as $$
begin
  update ingest.embedding_models set active = false where active and id <> p_id;
  update ingest.embedding_models set active = true where id = p_id;
  if not found then
    raise exception 'There is no embedding model %.', p_id using errcode = '22023', hint = 'ingest.embedding_models lists them.';
  end if;
end $$;

select ingest.activate_embedding_model(ingest.add_embedding_model('local', 'all-MiniLM-L6-v2', 384));
