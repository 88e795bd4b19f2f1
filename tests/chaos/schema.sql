-- What a run notes about itself, in its own throw-away database. The logs have no unique key: a second effect must show.

create schema chaos;

create table chaos.publications (at timestamptz default clock_timestamp(), document_id uuid, generation bigint);
create function chaos.log_publication() returns trigger language plpgsql security definer as $$ begin
  insert into chaos.publications (document_id, generation) values (new.id, new.published_generation);
  return null;
end $$;
create trigger chaos_publication after update of published_at on public.documents for each row
  when (new.published_at is distinct from old.published_at) execute function chaos.log_publication();

create table chaos.completions (at timestamptz default clock_timestamp(), job_id bigint, claim bigint);
create function chaos.log_completion() returns trigger language plpgsql security definer as $$ begin
  insert into chaos.completions (job_id, claim) values (new.id, new.claim);
  return null;
end $$;
create trigger chaos_completion after update of state on public.jobs for each row
  when (new.state = 'completed') execute function chaos.log_completion();

create table chaos.kills (at timestamptz, point text, job_id bigint, claim bigint);

-- A document meets more faults in a run than in a year, and on a busy machine its time-outs besides: five attempts would
-- end an innocent one by design, which is not what a run looks for.
alter table public.jobs alter column max_attempts set default 10;
