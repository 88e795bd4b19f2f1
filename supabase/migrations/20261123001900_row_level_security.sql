-- RLS everywhere. People read what their tenants own and write nothing: documents come from objects,
-- the rest from the worker. A table without a policy is closed to everybody but roles that bypass RLS.

alter table public.tenants          enable row level security;
alter table public.tenant_members   enable row level security;
alter table public.documents        enable row level security;
alter table public.jobs             enable row level security;
alter table public.job_events       enable row level security;
alter table public.pages            enable row level security;
alter table public.chunks           enable row level security;

alter table ingest.buckets          enable row level security;
alter table ingest.ignored_objects  enable row level security;
alter table ingest.tombstones       enable row level security;
alter table ingest.trigger_failures enable row level security;
alter table ingest.job_details      enable row level security;
alter table ingest.leases           enable row level security;
alter table ingest.turns            enable row level security;
alter table ingest.queues           enable row level security;
alter table ingest.parses           enable row level security;
alter table ingest.embedding_models enable row level security;
alter table ingest.embeddings       enable row level security;

create policy tenant_reads on public.tenants for select to authenticated
  using (id = any (array(select ingest.my_tenants('reader'))));
create policy tenant_reads on public.tenant_members for select to authenticated
  using (tenant_id = any (array(select ingest.my_tenants('reader'))));
create policy tenant_reads on public.documents for select to authenticated
  using (tenant_id = any (array(select ingest.my_tenants('reader')))
         and not (id = any (array(select ingest.tombstoned()))));
create policy tenant_reads on public.jobs for select to authenticated
  using (tenant_id = any (array(select ingest.my_tenants('reader'))));
create policy tenant_reads on public.job_events for select to authenticated
  using (tenant_id = any (array(select ingest.my_tenants('reader'))));
create policy tenant_reads on public.chunks for select to authenticated
  using (tenant_id = any (array(select ingest.my_tenants('reader')))
         and not (document_id = any (array(select ingest.tombstoned()))));
-- Only the pages behind a published document: those of a deleted one are gone for people at once,
-- although the sweep removes the rows later. The subquery runs under the caller's own RLS.
-- Both columns are named with their table: documents has a parse_id too.
create policy tenant_reads on public.pages for select to authenticated
  using (tenant_id = any (array(select ingest.my_tenants('reader')))
         and exists (select 1 from public.documents d where d.published_parse_id = pages.parse_id and d.tenant_id = pages.tenant_id));

-- search() runs as its caller and reads these two.
create policy everybody_reads on ingest.embedding_models for select to authenticated using (true);
create policy tenant_reads on ingest.embeddings for select to authenticated
  using (tenant_id = any (array(select ingest.my_tenants('reader'))));
