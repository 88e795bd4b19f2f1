-- Parses and their pages: the same bytes of a tenant are parsed once by a parser, a version and its
-- options. Nothing is reused across tenants.
--
-- The row is inserted before anything is sent, so that of two documents with the same bytes one
-- submits and the other waits. A submit whose lease is gone may be taken over.

create table ingest.parses (
  id              bigint generated always as identity primary key,
  tenant_id       uuid not null,
  content_sha256  bytea not null check (octet_length(content_sha256) = 32),
  parser          text not null,
  parser_version  text not null,
  options         text not null default '{}',              -- canonical JSON: sorted keys, no spaces
  state           text not null default 'submitting' check (state in ('submitting', 'waiting', 'done', 'failed')),
  submitted_job   bigint not null,
  submitted_by    bigint not null,                         -- that job's claim
  remote_ref      text,
  next_poll_at    timestamptz,
  page_count      integer check (page_count >= 0),
  title           text,
  mime_type       text,
  notes           text[] not null default '{}',
  error_code      text,
  error_message   text,
  created_at      timestamptz not null default now(),
  finished_at     timestamptz,
  unique (tenant_id, content_sha256, parser, parser_version, options),
  unique (id, tenant_id),
  constraint finished_iff_final check ((state in ('done', 'failed')) = (finished_at is not null)),
  constraint waiting_has_reference check (state <> 'waiting' or remote_ref is not null),
  constraint failed_means_code check (state <> 'failed' or error_code is not null)
);
create index parses_poll_idx on ingest.parses (next_poll_at) where state = 'waiting';

create table public.pages (
  parse_id    bigint not null,
  page        integer not null check (page > 0),
  tenant_id   uuid not null,
  markdown    text not null,
  primary key (parse_id, page),
  foreign key (parse_id, tenant_id) references ingest.parses (id, tenant_id) on delete cascade
);
comment on table public.pages is 'What parsing gave, a page a row; a document''s text is its pages joined by one blank line.';
create index pages_parse_tenant_idx on public.pages (parse_id, tenant_id);
