-- Watched buckets and documents: one row per object, one generation per version of its bytes.

create table ingest.buckets (
  bucket_id   text primary key,
  added_at    timestamptz not null default now()
);
comment on table ingest.buckets is 'The buckets whose objects become documents.';

create function ingest.watched_buckets()
returns setof text language sql stable security definer rows 4 set search_path = '' as $$
  select bucket_id from ingest.buckets
$$;

create type public.document_state as enum ('pending', 'processing', 'ready', 'failed', 'cancelled');

create table public.documents (
  id                    uuid primary key,                  -- the storage object's id, copied: no foreign key into a schema of Supabase's
  tenant_id             uuid not null references public.tenants (id),
  bucket_id             text not null,
  name                  text not null,
  state                 public.document_state not null default 'pending',   -- of the newest generation
  generation            bigint not null default 1 check (generation > 0),
  published_generation  bigint check (published_generation between 1 and generation),
  published_parse_id    bigint,
  parse_id              bigint,                            -- of the newest generation, as soon as it is known
  object_version        text,                              -- for people; a move rewrites it, so nothing is fenced by it
  size                  bigint check (size >= 0),
  mime_type             text,                              -- sniffed by the worker, declared by the client until then
  content_sha256        bytea check (octet_length(content_sha256) = 32),
  title                 text,
  language              text not null check (language in (
                          'simple', 'danish', 'dutch', 'english', 'finnish', 'french', 'german', 'italian',
                          'norwegian', 'portuguese', 'russian', 'spanish', 'swedish')),
  page_count            integer check (page_count >= 0),
  chunk_count           integer check (chunk_count >= 0),
  error_code            text,
  error_message         text,
  created_at            timestamptz not null default now(),
  updated_at            timestamptz not null default now(),
  published_at          timestamptz,
  unique (id, tenant_id),
  constraint ready_means_published check (state <> 'ready' or published_generation = generation),
  constraint failed_means_code     check (state <> 'failed' or error_code is not null)
) with (fillfactor = 80);
comment on table public.documents is 'One row per object in a watched bucket; id is the storage object''s id.';
comment on column public.documents.generation is 'Grows with each overwrite of the object; chunks belong to published_generation.';
create index documents_tenant_idx on public.documents (tenant_id, created_at desc);
create index documents_object_idx on public.documents (bucket_id, name);
create index documents_published_parse_idx on public.documents (published_parse_id) where published_parse_id is not null;
create index documents_parse_idx on public.documents (parse_id) where parse_id is not null;

-- Objects that can never be a document, each recorded once.
create table ingest.ignored_objects (
  object_id   uuid primary key,
  bucket_id   text not null,
  name        text not null,
  reason      text not null,
  at          timestamptz not null default now()
);

-- Documents whose object is gone although the deletion could not be carried out: hidden at once by
-- policies and search, removed by the sweep.
create table ingest.tombstones (
  object_id   uuid primary key,
  error       text not null,
  at          timestamptz not null default now()
);

create function ingest.tombstoned()
returns setof uuid language sql stable security definer rows 1 set search_path = '' as $$
  select object_id from ingest.tombstones
$$;

-- What the object trigger caught; the object itself was stored all the same.
create table ingest.trigger_failures (
  id          bigint generated always as identity primary key,
  object_id   uuid,
  operation   text not null,
  sqlstate    text not null,
  message     text not null,
  at          timestamptz not null default now()
);
