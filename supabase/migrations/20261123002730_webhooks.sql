-- Webhooks: a parser says that it has finished, and the timer need not. A hint only: what it says is
-- asked for with our key, and a lost one costs the wait until the next poll.

-- Of the secret in this parse's callback URL only the digest is kept.
alter table ingest.parses add column hook_secret_sha256 bytea check (octet_length(hook_secret_sha256) = 32);

-- What was accepted, so that nothing is accepted twice: the digest of what was signed or, where
-- nothing is signed, of the URL's secret, which serves once.
create table ingest.webhook_deliveries (
  digest    bytea primary key check (octet_length(digest) = 32),
  parse_id  bigint not null,                               -- no foreign key: it may outlive the parse
  at        timestamptz not null default clock_timestamp()
);
comment on table ingest.webhook_deliveries is 'Digests of accepted webhooks; a second one with the same digest is refused.';
create index webhook_deliveries_at_idx on ingest.webhook_deliveries (at);
alter table ingest.webhook_deliveries enable row level security;

-- Before the parse is sent: this digest is the one of the secret in its callback URL. Raises IG001
-- when the claim is stale or the parse is not its own. A submit that is done anew has a new secret.
create function ingest.expect_webhook(p_job bigint, p_claim bigint, p_parse bigint, p_secret_sha256 bytea)
returns void language plpgsql set search_path = '' as $$
begin
  perform ingest.hold_claim(p_job, p_claim);
  update ingest.parses set hook_secret_sha256 = p_secret_sha256
   where id = p_parse and submitted_job = p_job and submitted_by = p_claim and state = 'submitting';
  if not found then
    raise exception 'claim % on job % is stale: parse % is not its own', p_claim, p_job, p_parse using errcode = 'IG001';
  end if;
end $$;

-- A webhook came in: 'accepted' (the parse is due now, and the workers know), 'replayed' (it was
-- accepted before) or 'unknown' (there is no such parse, its secret is another one, or it has ended).
--
-- The provider may be faster than our note that it was sent, so a parse that is being submitted is
-- made due as well. Definer: the callers' role has no rights in this schema.
create function ingest.hint_parse(p_parse bigint, p_secret_sha256 bytea, p_digest bytea)
returns text language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
begin
  -- A month covers every provider's retries; by then the parse has ended, which refuses them too.
  delete from ingest.webhook_deliveries w where w.digest in (
    select o.digest from ingest.webhook_deliveries o where o.at < pg_catalog.now() - interval '30 days' order by o.at limit 10 for update skip locked);

  perform 1 from ingest.parses p
   where p.id = p_parse and p.hook_secret_sha256 = p_secret_sha256 and p.state in ('submitting', 'waiting')
     for no key update;
  if not found then return 'unknown'; end if;
  insert into ingest.webhook_deliveries (digest, parse_id) values (p_digest, p_parse) on conflict (digest) do nothing;
  if not found then return 'replayed'; end if;
  update ingest.parses p set next_poll_at = least(p.next_poll_at, pg_catalog.clock_timestamp()) where p.id = p_parse;
  perform ingest.wake();
  return 'accepted';
end $$;

-- What the edge function calls, with both digests in hex. The body is bound when it is made: nobody
-- who calls it needs to enter schema ingest.
create function public.parse_hint(parse_id bigint, secret_sha256 text, digest text)
returns text language sql volatile security invoker set search_path = ''
return ingest.hint_parse(parse_id, pg_catalog.decode(secret_sha256, 'hex'), pg_catalog.decode(digest, 'hex'));

revoke all on ingest.webhook_deliveries from anon, authenticated, service_role;
revoke execute on function
  ingest.expect_webhook(bigint, bigint, bigint, bytea),
  ingest.hint_parse(bigint, bytea, bytea),
  public.parse_hint(bigint, text, text)
  from public, anon, authenticated, service_role;
grant execute on function ingest.expect_webhook(bigint, bigint, bigint, bytea) to ingest_worker;
grant execute on function ingest.hint_parse(bigint, bytea, bytea), public.parse_hint(bigint, text, text) to service_role;
