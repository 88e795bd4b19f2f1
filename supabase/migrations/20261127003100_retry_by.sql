-- A retry by hand says in its event who asked for it.

drop function ingest.retry_discarded(bigint);

-- Bring a discarded or cancelled job back, with five more attempts. Its history stays, its attempts go on
-- counting, and a failed parse of its bytes is forgotten. Raises IG008 when there is nothing to retry.
-- p_by: 'operator', 'member' or 'quota'.
create function ingest.retry_discarded(p_job bigint, p_by text default 'operator')
returns void language plpgsql set search_path = '' as $$
declare
  v_job       public.jobs;
  v_document  public.documents;
  v_why       text;
begin
  select * into v_job from public.jobs where id = p_job for no key update;
  select * into v_document from public.documents where id = v_job.document_id;
  v_why := case
    when v_job.id is null then 'it does not exist, or was pruned; upload the file again'
    when v_job.finalized_at is null then pg_catalog.format('it is %s already', v_job.state)
    when v_job.state = 'completed' then 'it is completed; upload the file again to have it read again'
    when v_document.id is null then 'its file was deleted'
    when v_document.generation <> v_job.generation then pg_catalog.format(
      'its file was replaced meanwhile: this job is for generation %s, the file has %s', v_job.generation, v_document.generation)
    when v_document.published_generation = v_job.generation then 'its file is searchable already'
    when exists (select 1 from public.jobs j where j.document_id = v_job.document_id and j.generation = v_job.generation
                    and j.kind = v_job.kind and j.state in ('available', 'running'))
      then 'another job is doing this work already' end;
  if v_why is null then
    begin
      update public.jobs
         set state = 'available', finalized_at = null, max_attempts = attempt + 5, rescues = 0, snoozing_since = null,
             stage = null, progress = null, scheduled_at = pg_catalog.now(), error_code = null, error_message = null
       where id = p_job
      returning * into v_job;
    exception when unique_violation then
      v_why := 'another job is doing this work already';
    end;
  end if;
  if v_why is null then
    update public.documents set state = 'pending', error_code = null, error_message = null, updated_at = pg_catalog.now()
     where id = v_job.document_id and generation = v_job.generation;
    if not found then v_why := 'its file was deleted or replaced just now'; end if;
  end if;
  if v_why is not null then
    raise exception 'job % cannot be retried: %', p_job, v_why using errcode = 'IG008';
  end if;

  -- What could not be parsed is parsed again, whichever document's job had tried it: nobody's, so the first that comes.
  update ingest.parses p
     set state = 'submitting', submitted_by = 0, remote_ref = null, submitted_at = null, resubmits = 0,
         error_code = null, error_message = null, finished_at = null
    from public.documents d
   where d.id = v_job.document_id and p.id = d.parse_id and p.state = 'failed';
  update ingest.job_details set awaiting_parse_id = null, updated_at = pg_catalog.now() where job_id = p_job;
  insert into public.job_events (job_id, document_id, generation, tenant_id, event, state, attempt, claim, detail)
  values (v_job.id, v_job.document_id, v_job.generation, v_job.tenant_id, 'retry', v_job.state, v_job.attempt, v_job.claim,
          pg_catalog.jsonb_build_object('by', p_by));
  perform ingest.take_turn(v_job.tenant_id);
  perform ingest.wake();
end $$;

revoke execute on function ingest.retry_discarded(bigint, text) from public, anon, authenticated, service_role;
grant execute on function ingest.retry_discarded(bigint, text) to ingest_worker;
