-- Alerts: what an operator has to put right, one open row for each kind and subject. Who notices a
-- trouble raises it, as often as it is noticed; who sees the same subject work again resolves it.

create table ingest.alerts (
  id           bigint generated always as identity primary key,
  kind         text not null check (char_length(kind) between 1 and 64),
  subject      text not null check (char_length(subject) between 1 and 200),
  message      text not null check (char_length(message) <= 1000),
  raised_at    timestamptz not null default clock_timestamp(),
  last_at      timestamptz not null default clock_timestamp(),
  count        integer not null default 1 check (count > 0),   -- how often it was noticed
  resolved_at  timestamptz
);
comment on table ingest.alerts is 'What an operator has to put right; open while resolved_at is null.';
create unique index alerts_open_idx on ingest.alerts (kind, subject) where resolved_at is null;
alter table ingest.alerts enable row level security;

-- A text without what looks like a secret: Supabase's and vendors' keys, tokens, passwords in URLs,
-- and the queries of URLs, which sign them.
create function ingest.without_secrets(p_text text)
returns text language sql immutable set search_path = ''
return pg_catalog.regexp_replace(pg_catalog.regexp_replace(pg_catalog.regexp_replace(p_text,
  '\m(sb_secret_|sb_publishable_|sk-|llx-|sbp_|eyJ)[A-Za-z0-9_.*-]{4,}', '…', 'g'),
  '(://[^\s:/@]*):[^\s@/]+@', '\1:…@', 'g'),
  '(\w+://[^\s?]*)\?\S+', '\1?…', 'g');

-- True when it was not open yet. The newest message stands.
create function ingest.raise_alert(p_kind text, p_subject text, p_message text)
returns boolean language sql set search_path = '' as $$
  insert into ingest.alerts as a (kind, subject, message)
  values (p_kind, pg_catalog.left(p_subject, 200), pg_catalog.left(ingest.without_secrets(p_message), 1000))
  on conflict (kind, subject) where resolved_at is null
  do update set count = a.count + 1, last_at = pg_catalog.clock_timestamp(), message = excluded.message
  returning a.count = 1
$$;

-- True when there was an open one.
create function ingest.resolve_alert(p_kind text, p_subject text)
returns boolean language sql set search_path = '' as $$
  with resolved as (
    update ingest.alerts set resolved_at = pg_catalog.clock_timestamp()
     where kind = p_kind and subject = pg_catalog.left(p_subject, 200) and resolved_at is null
    returning 1
  )
  select exists (select 1 from resolved)
$$;

-- Resolve what nobody reported for three snoozes although files were completed since: whoever raised
-- it may be gone. What was resolved a quarter of a year ago is forgotten. Returns how many were resolved.
create function ingest.tidy_alerts()
returns integer language plpgsql set search_path = '' as $$
declare
  v_resolved integer;
begin
  update ingest.alerts a set resolved_at = pg_catalog.clock_timestamp()
   where a.kind = 'misconfigured' and a.resolved_at is null and a.last_at < pg_catalog.clock_timestamp() - interval '15 minutes'
     and exists (select 1 from public.job_events e where e.at > a.last_at and e.event = 'complete');
  get diagnostics v_resolved = row_count;
  delete from ingest.alerts where resolved_at < pg_catalog.now() - interval '90 days';
  return v_resolved;
end $$;
