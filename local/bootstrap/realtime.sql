-- Schema realtime: what policies on private channels and broadcasts from the database rely on.

set role supabase_realtime_admin;

create table realtime.messages (
  topic text not null,
  extension text not null,
  payload jsonb,
  event text,
  private boolean default false,
  updated_at timestamp not null default now(),
  inserted_at timestamp not null default now(),
  id uuid not null default gen_random_uuid(),
  binary_payload bytea,
  primary key (id, inserted_at),
  constraint messages_payload_exclusive check (payload is null or binary_payload is null)
) partition by range (inserted_at);

-- The platform makes a partition a day and drops it after three; one for everything does for a laptop.
create table realtime.messages_default partition of realtime.messages default;
create index messages_inserted_at_topic_index on realtime.messages (inserted_at desc, topic)
  where extension = 'broadcast' and private;

alter table realtime.messages enable row level security;
alter table realtime.messages_default enable row level security;

create function realtime.topic() returns text
language sql stable
return nullif(current_setting('realtime.topic', true), '');

-- Broadcasts to a channel. It never fails its caller: what goes wrong is a warning, and the message is lost.
create function realtime.send(payload jsonb, event text, topic text, private boolean default true) returns void
language plpgsql set search_path = '' as $$
declare
  message_id uuid := gen_random_uuid();
  body jsonb := payload;
begin
  if not body ? 'id' then
    body := jsonb_set(body, '{id}', to_jsonb(message_id));
  end if;
  perform set_config('realtime.topic', topic, true);
  insert into realtime.messages (id, payload, event, topic, private, extension)
  values (message_id, body, event, topic, private, 'broadcast');
exception when others then
  raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
end $$;

grant select, insert, update on realtime.messages to postgres, anon, authenticated, service_role;

reset role;

-- What is broadcast is decoded from here.
create publication supabase_realtime_messages_publication for table realtime.messages with (publish = 'insert');
