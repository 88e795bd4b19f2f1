-- The worker's login. BYPASSRLS, because COPY is refused under RLS; what it may touch is the list in
-- the grants file, and the tenant safety of its writes comes from functions and composite keys.
--
-- No password: whoever deploys sets one (alter role ingest_worker password '…').

do $$
begin
  if not exists (select 1 from pg_catalog.pg_roles where rolname = 'ingest_worker') then
    create role ingest_worker with login bypassrls;
  end if;
end $$;

alter role ingest_worker set statement_timeout = '60s';
alter role ingest_worker set lock_timeout = '5s';
alter role ingest_worker set idle_in_transaction_session_timeout = '30s';
