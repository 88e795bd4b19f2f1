-- Looking at jobs by hand: a page of them by filter, and the one that somebody means. For the worker's login, with
-- which `sluice jobs` connects: it shows names of files, which operators behind the API do not see.

-- Jobs by filter, the newest first; null is no filter. A page goes on with p_before, the last one's id: ids only
-- grow, so a page is the same whatever happens meanwhile. p_name is an object's whole name or its last part.
create function ingest.list_jobs(
  p_states public.job_state[], p_tenant uuid, p_document uuid, p_name text, p_code text, p_since interval, p_stage text,
  p_before bigint, p_limit integer
)
returns table (id bigint, document_id uuid, name text, tenant_id uuid, generation bigint, state public.job_state, stage text,
               progress real, attempt smallint, max_attempts smallint, rescues smallint, snoozes integer, error_code text,
               error_message text, created_at timestamptz, scheduled_at timestamptz, started_at timestamptz, finalized_at timestamptz)
language sql stable set search_path = '' as $$
  select j.id, j.document_id, d.name, j.tenant_id, j.generation, j.state, j.stage, j.progress, j.attempt, j.max_attempts,
         j.rescues, j.snoozes, j.error_code, j.error_message, j.created_at, j.scheduled_at, j.started_at, j.finalized_at
    from public.jobs j left join public.documents d on d.id = j.document_id
   where (p_before is null or j.id < p_before)
     and (p_states is null or j.state = any (p_states))
     and (p_tenant is null or j.tenant_id = p_tenant)
     and (p_document is null or j.document_id = p_document)
     and (p_name is null or d.name = p_name or pg_catalog.right(d.name, pg_catalog.char_length(p_name) + 1) = '/' || p_name)
     and (p_code is null or j.error_code = p_code)
     and (p_stage is null or j.stage = p_stage)
     -- greatest() passes over nulls
     and (p_since is null or greatest(j.created_at, j.started_at, j.finalized_at) >= pg_catalog.now() - p_since)
   order by j.id desc limit p_limit
$$;

-- Who is meant by a name or a document's id: each document with the job of its newest generation, the newest first.
create function ingest.find_documents(p_document uuid, p_name text, p_limit integer default 20)
returns table (document_id uuid, name text, tenant_id uuid, job_id bigint)
language sql stable set search_path = '' as $$
  select d.id, d.name, d.tenant_id, (select pg_catalog.max(j.id) from public.jobs j where j.document_id = d.id)
    from public.documents d
   where case when p_document is not null then d.id = p_document
              else d.name = p_name or pg_catalog.right(d.name, pg_catalog.char_length(p_name) + 1) = '/' || p_name end
  union all                                                -- deleted: what remains of it are its jobs
  (select j.document_id, null, j.tenant_id, j.id from public.jobs j
    where j.document_id = p_document and not exists (select 1 from public.documents d where d.id = p_document)
    order by j.id desc limit 1)
   order by 4 desc nulls last limit p_limit
$$;

-- Objects of that name or id that have no document, for whoever asks why nothing came of an upload. Definer: the
-- worker's login sees no row of storage.objects.
create function ingest.find_objects(p_object uuid, p_name text, p_limit integer default 20)
returns table (object_id uuid, bucket_id text, name text)
language sql stable security definer set search_path = '' as $$
  select o.id, o.bucket_id, o.name from storage.objects o
   where case when p_object is not null then o.id = p_object
              else o.name = p_name or pg_catalog.right(o.name, pg_catalog.char_length(p_name) + 1) = '/' || p_name end
     and not exists (select 1 from public.documents d where d.id = o.id)
   order by o.created_at desc limit p_limit
$$;

-- What was noted in the timeline since p_after, for whoever follows it. Numbers are given before commits: ask again
-- from a little earlier and pass over what is known.
create function ingest.events_since(p_after timestamptz, p_job bigint, p_tenant uuid, p_limit integer)
returns table (id bigint, at timestamptz, job_id bigint, document_id uuid, name text, tenant_id uuid, generation bigint, event text,
               state public.job_state, stage text, attempt smallint, seconds double precision, error_code text)
language sql stable set search_path = '' as $$
  select e.id, e.at, e.job_id, e.document_id, d.name, e.tenant_id, e.generation, e.event, e.state, e.stage, e.attempt,
         extract(epoch from e.took)::double precision, e.error_code
    from public.job_events e left join public.documents d on d.id = e.document_id
   where e.at >= p_after and (p_job is null or e.job_id = p_job) and (p_tenant is null or e.tenant_id = p_tenant)
   order by e.at, e.id limit p_limit
$$;

revoke execute on function
  ingest.list_jobs(public.job_state[], uuid, uuid, text, text, interval, text, bigint, integer),
  ingest.find_documents(uuid, text, integer), ingest.find_objects(uuid, text, integer),
  ingest.events_since(timestamptz, bigint, uuid, integer)
  from public, anon, authenticated, service_role;
grant execute on function
  ingest.list_jobs(public.job_state[], uuid, uuid, text, text, interval, text, bigint, integer),
  ingest.find_documents(uuid, text, integer), ingest.find_objects(uuid, text, integer),
  ingest.events_since(timestamptz, bigint, uuid, integer)
  to ingest_worker;
