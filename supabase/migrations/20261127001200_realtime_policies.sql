-- What stands in schema realtime and in its publication. Where they are missing this does nothing, and may be
-- applied again when they are there: supabase migration repair --status reverted 20261127001200, then db push.

-- Realtime judges a channel once, by a row that it inserts and rolls back; nothing but topic and extension of it
-- can be relied on. The topic of the row is compared too: a replay reads other rows.
do $$ begin
  if to_regclass('realtime.messages') is not null then
    drop policy if exists sluice_receive on realtime.messages;
    create policy sluice_receive on realtime.messages for select to authenticated
      using (extension = 'broadcast' and topic = (select realtime.topic())
             and (select ingest.may_follow((select realtime.topic()))));
  end if;
end $$;

-- Postgres Changes on jobs, under the policies of the table. Heartbeats are in another table, so that a change
-- is one that somebody may want to see.
do $$ begin
  if exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime')
     and not exists (select from pg_catalog.pg_publication_tables
                      where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = 'jobs') then
    alter publication supabase_realtime add table public.jobs;
  end if;
end $$;
